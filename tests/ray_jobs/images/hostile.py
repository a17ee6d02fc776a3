"""Pictures as they come, and pictures that mean harm; all made here."""

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image


def picture(width=96, height=64, mode="RGB", seed=0):
    """A picture of smooth colours, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    return corners.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, form="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, format=form, **options)
    return sink.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, idat, *more, depth=8, colour=2):
    """A PNG of chosen header and data, whether they agree or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", idat), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def zeros(num):
    """``num`` zero bytes, compressed a thousandfold."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(num >> 20)), packer.flush()])


def webp_header(width, height):
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 64) + body + bytes(64)


def gif(width, height, frame_width, frame_height):
    """A GIF of a tiny screen whose frame claims another size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0)
    return screen + frame + b"\x02\x02\x4c\x01\x00;"


def animated(form):
    frames = [picture(seed=s) for s in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)


def archive():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        made.writestr("cat.jpg", b"no cat")
    return sink.getvalue()


def cut(data, share=0.6):
    return data[: int(len(data) * share)]


JPEG, PNG = encoded(picture(), "JPEG"), encoded(picture())
SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
ITXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zeros(64 << 20))
ICC_BOMB = chunk(b"iCCP", b"icc\0\0" + zeros(64 << 20))

# Name, bytes, reason. None where harm is only looked for: the picture is fine.
CASES = [
    ("zero_bytes", b"", "empty"),
    ("one_byte", b"\x89", "wrong_type"),
    ("html_named_jpg", b"<!DOCTYPE html><html><body>404</body></html>", "wrong_type"),
    ("svg_with_script", SVG, "wrong_type"),
    ("pdf", b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", "wrong_type"),
    ("zip", archive(), "wrong_type"),
    ("tiff", encoded(picture(), "TIFF"), "wrong_type"),
    ("icon", encoded(picture(64, 64), "ICO"), "wrong_type"),
    ("fits", b"SIMPLE  =                    T".ljust(2880), "wrong_type"),
    ("git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "wrong_type"),
    ("text_that_begins_like_bmp", b"BM is what this text begins with, no more", "wrong_type"),
    ("random_bytes", np.random.default_rng(1).bytes(4096), "wrong_type"),
    ("magic_alone_jpeg", b"\xff\xd8\xff", "unreadable"),
    ("magic_alone_png", b"\x89PNG\r\n\x1a\n", "unreadable"),
    ("magic_alone_webp", b"RIFF\x10\0\0\0WEBPVP8 ", "unreadable"),
    ("jpeg_named_png_inside", b"\x89PNG\r\n\x1a\n" + JPEG, "unreadable"),
    ("cut_jpeg", cut(JPEG), "truncated"),
    ("cut_png", cut(PNG), "truncated"),
    ("cut_webp", cut(encoded(picture(), "WEBP")), "unreadable"),
    ("cut_gif", cut(encoded(picture(), "GIF"), 0.9), "truncated"),
    ("cut_bmp", cut(encoded(picture(), "BMP")), "truncated"),
    ("png_with_wrong_checksum", PNG[:20] + b"\x7f" + PNG[21:], "unreadable"),
    ("png_of_no_rows", png(96, 64, zlib.compress(b"")), "truncated"),
    ("one_pixel", encoded(picture(1, 1)), "too_small"),
    ("thin_line", encoded(picture(900, 3)), "too_small"),
    ("no_pixels", png(0, 0, zlib.compress(b"")), "unreadable"),
    ("20000_px_wide", encoded(Image.new("L", (20_000, 9))), "too_long_side"),
    ("20000_px_square_one_bit", encoded(Image.new("1", (20_000, 20_000))), "too_long_side"),
    ("bomb_50k_square_header", png(50_000, 50_000, zeros(4 << 20)), "too_long_side"),
    ("bomb_15k_square_rgb", png(15_000, 15_000, zeros(64 << 20)), "too_many_pixels"),
    ("bomb_4_billion_px_header", png(2**31 - 1, 2**31 - 1, b""), "too_long_side"),
    ("bomb_webp_canvas", webp_header(16_000, 16_000), "too_many_pixels"),
    ("bomb_webp_lossless", b"RIFF\x40\0\0\0WEBPVP8L\x20\0\0\0\x2f" + b"\xff" * 64, "too_long_side"),
    ("bomb_gif_screen", gif(65_535, 65_535, 1, 1), "too_long_side"),
    ("bomb_gif_frame", gif(64, 64, 65_535, 65_535), "too_long_side"),
    (
        "bomb_bmp_header",
        b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 50_000, 50_000, 1, 24) + bytes(24),
        "too_long_side",
    ),
    ("bomb_png_text", png(96, 64, zlib.compress(bytes(64 * 289)), ITXT_BOMB), "bomb"),
    ("bomb_png_profile", png(96, 64, zlib.compress(bytes(64 * 289)), ICC_BOMB), "bomb"),
    ("animated_gif", animated("GIF"), "animated"),
    ("animated_webp", animated("WEBP"), "animated"),
    ("animated_png", animated("PNG"), "animated"),
    ("too_many_bytes_after_the_picture", PNG + bytes(1 << 20), None),
    ("polyglot_jpeg_and_zip", JPEG + archive(), None),
    ("jpeg_with_damaged_exif", encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 64), None),
]
