"""The canonical form: every mode and orientation that Pillow opens comes out as one RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from models.vision.canonical import DIGEST_LENGTH, MAX_SIDE, TURNS, canonical, decode, encode, pixel_digest


def picture(width=40, height=24, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def reopened(image, form="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, format=form, **options)
    return Image.open(io.BytesIO(sink.getvalue()))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new(mode, (30, 20))
    made = canonical(image)
    assert (made.mode, made.size) == ("RGB", (30, 20))


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_grey_levels_are_the_same_in_eight_and_sixteen_bits(mode):
    levels_HW = np.arange(256, dtype=np.uint16).reshape(16, 16)
    grey = Image.fromarray(levels_HW.astype(np.uint8) if mode == "L" else levels_HW * 257)
    made_HWC = np.asarray(canonical(reopened(grey)))
    assert (made_HWC == levels_HW[:, :, None]).all()


def test_what_is_transparent_shows_white_in_every_form():
    for image in (
        Image.new("RGBA", (8, 8), (200, 0, 0, 0)),
        Image.new("LA", (8, 8), (0, 0)),
        reopened(Image.new("L", (8, 8), 7), transparency=7),
        reopened(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3)),
        reopened(Image.new("P", (8, 8), 0), transparency=0),
    ):
        assert (np.asarray(canonical(image)) == 255).all(), image.mode
    half = np.asarray(canonical(Image.new("RGBA", (8, 8), (0, 0, 0, 128))))
    assert (abs(half.astype(int) - 127) <= 1).all()


@pytest.mark.parametrize("size, wanted", [
    ((512, 512), (512, 512)),
    ((513, 100), (512, 100)),
    ((1024, 256), (512, 128)),
    ((300, 3000), (51, 512)),
    ((9000, 8), (512, 1)),
    ((8, 8), (8, 8)),
])  # fmt: skip
def test_only_what_is_too_long_is_scaled(size, wanted):
    assert canonical(Image.new("RGB", size)).size == wanted and max(wanted) <= MAX_SIDE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_on_its_side_is_put_upright(orientation):
    upright = picture(900, 30)
    # Stored the other way round: the turn that undoes it is the inverse of the one that is applied.
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(TURNS[undo]) if undo in TURNS else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixel_digest(canonical(reopened(stored, exif=exif))) == pixel_digest(canonical(upright))


def test_a_damaged_orientation_is_none():
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no exif at all", b"x"):
        made = canonical(reopened(picture(), "JPEG", exif=exif))
        assert made.size == (40, 24)


def test_the_digest_is_of_size_and_pixels():
    first = canonical(picture())
    assert pixel_digest(first) == pixel_digest(canonical(reopened(picture(), "BMP"))) == pixel_digest(first.copy())
    assert len(pixel_digest(first)) == DIGEST_LENGTH
    others = [picture(seed=1), Image.fromarray(np.asarray(picture()).reshape(40, 24, 3)), Image.new("RGB", (40, 24))]
    assert len({pixel_digest(canonical(i)) for i in [picture(), *others]}) == 4
    nudged = np.array(picture())
    nudged[3, 5, 1] ^= 1
    assert pixel_digest(Image.fromarray(nudged)) != pixel_digest(first)


def test_what_is_kept_is_the_picture_and_nothing_of_its_source():
    smooth = picture(5, 4).resize((200, 160), Image.Resampling.BICUBIC)
    source = reopened(smooth, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0secret place", comment=b"secret")
    made = canonical(source)
    jpeg = encode(made)
    assert b"secret" not in jpeg and jpeg[:3] == b"\xff\xd8\xff"
    assert np.abs(decode(jpeg).astype(int) - np.asarray(made)).mean() < 1.5
