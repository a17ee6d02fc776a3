"""The canonical form of an image: one size, one mode, one orientation, so that equal pictures have equal digests.

Shape letters: H height, W width, C channels (RGB).
"""

import hashlib
import io
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

# Raise it whenever other pixels come out: it is part of every digest.
PREPROCESS_VERSION = "1"
MAX_SIDE = 512
JPEG_QUALITY = 92
DIGEST_LENGTH = 32
ORIENTATION_TAG = 0x0112
# Exif 2.3, tag 0x0112: how to turn an image so that its first row is on top.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WIDE_MODES = ("I", "F")


def _orientation(image: Image.Image) -> int:
    """The orientation that the image's metadata gives; 1 where they are missing or damaged."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except (ValueError, TypeError, KeyError, IndexError, SyntaxError, OSError, struct.error, UnidentifiedImageError):
        return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 or more bits as 8 bits; what is beyond 16 bits is clipped."""
    levels_HW = np.clip(np.asarray(image), 0, 65_535).astype(np.float32)
    levels_HW /= 257
    return Image.fromarray(np.rint(levels_HW, out=levels_HW).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB; what is transparent shows white."""
    if image.mode.startswith(WIDE_MODES):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def canonical(image: Image.Image) -> Image.Image:
    """Returns the canonical form: upright, RGB over white, longest side at most `MAX_SIDE`, never enlarged.

    Args:
        image: An image of any mode that Pillow opens; of an animated one the frame at which it stands. Colour profiles
            are left out of account.
    """
    image.load()
    turn = TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    longest = max(rgb.size)
    if longest <= MAX_SIDE:
        return rgb
    width, height = (max(round(side * MAX_SIDE / longest), 1) for side in rgb.size)
    return rgb.resize((width, height), Image.Resampling.LANCZOS)


def pixel_digest(image: Image.Image) -> str:
    """Digest of a canonical image's pixels: 32 hex digits of SHA-256 over preprocess version, size and pixels."""
    width, height = image.size
    digest = hashlib.sha256(f"{PREPROCESS_VERSION}:{MAX_SIDE}:{width}x{height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:DIGEST_LENGTH]


def encode(image: Image.Image) -> bytes:
    """A canonical image as the JPEG that is kept, without any metadata of its source."""
    sink = io.BytesIO()
    clean = Image.frombytes("RGB", image.size, image.tobytes())
    clean.save(sink, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return sink.getvalue()


def decode(jpeg: bytes) -> np.ndarray:
    """Pixels of a kept image, uint8 of shape (H, W, C)."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))
