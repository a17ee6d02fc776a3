"""The process that decodes: it parses hostile bytes under limits of memory, CPU and files, and may die of them.

Frames on stdin and stdout: length (4 bytes, big-endian), then the bytes. A request is the file's bytes; the answer is a
JSON object in a frame and, when the image is usable, its canonical JPEG in another. `ray_jobs.images.decoder` is the
other end.
"""

import io
import json
import math
import resource
import sys
import warnings
from typing import Any, BinaryIO

from PIL import Image

from models.vision.canonical import canonical, encode, pixel_digest
from ray_jobs.images.header import check_size, sniff, webp_size
from ray_jobs.images.limits import ImageLimits
from ray_jobs.images.reasons import ImageRefusedError


def write_frame(stream: BinaryIO, data: bytes) -> None:
    """Writes one frame."""
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def read_image(data: bytes, limits: ImageLimits) -> tuple[dict[str, Any], bytes]:
    """Measures and decodes an image.

    Returns:
        ``format``, ``width``, ``height`` of the source and ``digest`` of the canonical pixels; the canonical JPEG.

    Raises:
        ImageRefusedError: If it is not one that is taken.
    """
    kind = sniff(data)
    size = webp_size(data) if kind == "WEBP" else None
    if size is not None:
        check_size(*size, limits)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            check_size(*image.size, limits)
            # A JPEG of several pictures (MPO) is what some cameras write: its first is the photograph.
            if kind != "JPEG" and getattr(image, "is_animated", False):
                raise ImageRefusedError("animated")
            measured = {"format": kind, "width": image.width, "height": image.height}
            picture = canonical(image)
    except (ImageRefusedError, MemoryError):
        raise
    except Exception as error:
        raise _refusal(kind, error) from error
    return measured | {"digest": pixel_digest(picture)}, encode(picture)


def _refusal(kind: str, error: Exception) -> ImageRefusedError:
    """Names what Pillow raised; it has no types of its own for most of it."""
    said = str(error) or type(error).__name__
    told = said.lower()
    if "decompressed data too large" in told or "text memory" in told:
        return ImageRefusedError("bomb", error=said)
    if "truncated" in told or "not enough image data" in told or isinstance(error, EOFError):
        return ImageRefusedError("truncated")
    # Pillow's own sentence would name an address in memory.
    said = "its header is damaged" if isinstance(error, Image.UnidentifiedImageError) else said
    return ImageRefusedError("unreadable", format=kind, error=said)


def _limit(limits: ImageLimits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        most = mapped + limits.memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _allow_seconds(seconds: float) -> None:
    """Sets the CPU time at which the system ends this process: so much more than it has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Serves until stdin ends."""
    warnings.simplefilter("ignore")
    limits = ImageLimits.model_validate_json(sys.argv[1])
    # Sizes are checked by `check_size`, which tells them apart.
    Image.MAX_IMAGE_PIXELS = None
    for plugin in ("Jpeg", "Png", "WebP", "Gif", "Bmp"):
        __import__(f"PIL.{plugin}ImagePlugin")
    _limit(limits)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    write_frame(answers, b"ready")
    while len(head := requests.read(4)) == 4:
        data = requests.read(int.from_bytes(head, "big"))
        _allow_seconds(limits.decode_seconds)
        try:
            measured, jpeg = read_image(data, limits)
            write_frame(answers, json.dumps(measured).encode())
            write_frame(answers, jpeg)
        except ImageRefusedError as refused:
            write_frame(answers, json.dumps({"refused": refused.reason, "details": refused.details}).encode())
        except MemoryError:
            write_frame(answers, json.dumps({"refused": "decode_memory", "details": {}}).encode())
            return


if __name__ == "__main__":
    main()
