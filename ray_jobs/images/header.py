"""What an image's first bytes say: its format by magic, and its size, without decoding anything."""

import struct

from ray_jobs.images.limits import FORMATS, ImageLimits
from ray_jobs.images.reasons import ImageRefusedError

# What is found in place of images, by how it begins; only for the sentence that is told.
OTHERS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"SIMPLE  =", "a FITS image"),
    (b"8BPS", "a Photoshop image"),
    (b"\x7fELF", "a program"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)


def sniff(data: bytes) -> str:
    """The format that the first bytes claim.

    Raises:
        ImageRefusedError: ``empty``, or ``wrong_type`` with what it is instead.
    """
    if not data:
        raise ImageRefusedError("empty")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    # Two letters are no proof: the size of the second header is one of the few that exist.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in (12, 40, 52, 56, 64, 108, 124):
        return "BMP"
    raise ImageRefusedError("wrong_type", found=_what(data), allowed=", ".join(FORMATS))


def _what(data: bytes) -> str:
    for magic, name in OTHERS:
        if data.startswith(magic):
            return name
    if data[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "an AVIF or HEIF image"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return "of an unknown kind"


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP, or None where its header is damaged.

    Read here, because Pillow allocates the whole canvas before it tells the size.
    Layout: https://developers.google.com/speed/webp/docs/riff_container
    """
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuses a size out of bounds.

    Raises:
        ImageRefusedError: ``too_small``, ``too_long_side`` or ``too_many_pixels``.
    """
    size = {"width": width, "height": height}
    if min(width, height) < limits.min_side:
        raise ImageRefusedError("too_small", **size, limit=limits.min_side)
    if max(width, height) > limits.max_side:
        raise ImageRefusedError("too_long_side", **size, limit=limits.max_side)
    if width * height > limits.max_pixels:
        raise ImageRefusedError("too_many_pixels", **size, limit=limits.max_pixels)
