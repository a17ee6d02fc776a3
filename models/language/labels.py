"""Labels and titles as data of a prompt."""

from models.language.captions import clean

MAX_TITLE = 60


def plain(text: str) -> str:
    """A label or title on one line, of bounded length, without what would open or close the data block."""
    return clean(text, MAX_TITLE).replace(";", ",")


def topic(label: str) -> str:
    """A label without the title in brackets that only tells siblings apart."""
    return plain(label.split(" (")[0])
