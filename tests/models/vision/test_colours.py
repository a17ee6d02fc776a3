import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.vision.colours import NAMES, dominant_colours, is_blank


def plain(colour, size=(40, 30)):
    return np.asarray(Image.new("RGB", size, colour))


@pytest.mark.parametrize(
    "colour, name",
    [
        ("black", "black"), ("white", "white"), ("grey", "grey"), ("#c01010", "red"), ("#ff8c00", "orange"),
        ("#ffe000", "yellow"), ("green", "green"), ("#1030c0", "blue"), ("#7020c0", "purple"), ("#ffa0b8", "pink"),
        ("#ff69b4", "pink"), ("#6b4020", "brown"), ("#202020", "black"), ("#f0f0f0", "white"), ("navy", "blue"),
    ],
)  # fmt: skip
def test_colours_have_the_name_that_people_give_them(colour, name):
    assert dominant_colours(plain(colour)) == [name] and name in NAMES


def test_the_largest_colour_is_named_first_and_specks_are_not():
    image = Image.new("RGB", (100, 100), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 99, 39), fill="#1030c0")
    pen.rectangle((0, 40, 99, 59), fill="#c01010")
    pen.rectangle((0, 60, 9, 69), fill="green")
    assert dominant_colours(np.asarray(image)) == ["blue", "white", "red"]


def test_blank_is_what_shows_nothing():
    assert is_blank(plain("white")) and is_blank(plain("#123456"))
    rng = np.random.default_rng(0)
    assert is_blank(np.clip(plain("grey").astype(int) + rng.integers(-2, 3, (30, 40, 3)), 0, 255).astype(np.uint8))
    drawn = plain("white").copy()
    drawn[:6, :6] = 0
    assert not is_blank(drawn)
