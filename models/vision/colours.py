"""What can be said of an image without a model: whether it shows anything, and its dominant colours.

Shape letters: H height, W width, C channels (RGB).
"""

import numpy as np
from PIL import Image

# Berlin and Kay, Basic Color Terms (1969): the eleven that languages name first.
NAMES = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
MAX_COLOURS, MIN_SHARE = 3, 0.12
THUMBNAIL = 48
# Levels of 255 within which an image counts as one plain surface; JPEG alone makes a few.
BLANK_RANGE = 8.0
# Upper bounds of hue in degrees; what is beyond the last is red again.
HUES = ((15, "red"), (45, "orange"), (70, "yellow"), (170, "green"), (260, "blue"), (300, "purple"), (345, "pink"))


def is_blank(pixels_HWC: np.ndarray) -> bool:
    """Whether all but a few specks of the image are of one colour.

    Args:
        pixels_HWC: Pixels, uint8.
    """
    low_C, high_C = np.percentile(pixels_HWC.reshape(-1, pixels_HWC.shape[-1]), [0.5, 99.5], axis=0)
    return bool((high_C - low_C).max() < BLANK_RANGE)


def dominant_colours(pixels_HWC: np.ndarray) -> list[str]:
    """Names of the colours that cover the most of the image, at most three, largest first.

    Args:
        pixels_HWC: Pixels, uint8.
    """
    small = Image.fromarray(pixels_HWC)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    names = _names(np.asarray(small.convert("HSV")).reshape(-1, 3))
    shares = np.bincount(names, minlength=len(NAMES)) / len(names)
    order = np.argsort(-shares, kind="stable")[:MAX_COLOURS]
    return [NAMES[i] for at, i in enumerate(order) if shares[i] >= MIN_SHARE or at == 0]


def _names(hsv_NC: np.ndarray) -> np.ndarray:
    """Index into `NAMES` of each colour, int64 of shape (N,)."""
    hue_N = hsv_NC[:, 0].astype(np.float64) * 360 / 256
    saturation_N, value_N = hsv_NC[:, 1] / 255, hsv_NC[:, 2] / 255
    by_hue = [NAMES.index(name) for _, name in HUES] + [NAMES.index("red")]
    named_N = np.array(by_hue)[np.searchsorted([bound for bound, _ in HUES], hue_N, side="right")]
    red_N, orange_N = named_N == NAMES.index("red"), named_N == NAMES.index("orange")
    named_N[(orange_N & (value_N < 0.65)) | (red_N & (value_N < 0.45) & (saturation_N < 0.8))] = NAMES.index("brown")
    named_N[red_N & (value_N > 0.7) & (saturation_N < 0.5)] = NAMES.index("pink")
    grey_N = saturation_N < 0.14
    named_N[grey_N] = NAMES.index("grey")
    named_N[grey_N & (value_N > 0.85)] = NAMES.index("white")
    named_N[(value_N < 0.18) | (grey_N & (value_N < 0.25))] = NAMES.index("black")
    return named_N
