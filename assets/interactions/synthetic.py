"""Draws a small shop of recipes: users with latent tastes, dishes with text and pictures, and events."""

import datetime as dt
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pydantic
from upath import UPath

from assets.interactions.readers.base import DatasetError
from models.identity import version_of

GENERATOR_VERSION = "2"
CUISINES = {
    "Levantine": ("chickpea", "tahini", "parsley"),
    "Nordic": ("rye", "herring", "dill"),
    "Sichuan": ("pepper", "tofu", "scallion"),
    "Mexican": ("corn", "lime", "bean"),
    "Italian": ("tomato", "basil", "semolina"),
    "Bengali": ("mustard", "lentil", "rice"),
    "Ethiopian": ("teff", "berbere", "cabbage"),
    "Patisserie": ("butter", "almond", "cream"),
}
FORMS = ("Stew", "Salad", "Dumplings", "Flatbread", "Soup", "Skewers", "Cake", "Bowl", "Pie", "Noodles")
MOODS = ("smoky", "bright", "tender", "crisp", "fiery", "mellow", "sweet", "earthy")
TASTE_DIMS = 8
FIRST_DAY = dt.datetime(2024, 1, 8, tzinfo=dt.UTC)
USERS_AT_ONCE = 2048
EVENTS_AT_ONCE = 250_000
SITTING = 50
IMAGE_SIZE = (96, 128)


class SyntheticConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What to draw."""

    users: int = pydantic.Field(200, ge=1, description="Number of users.")
    items: int = pydantic.Field(120, ge=1, description="Number of items.")
    events: int = pydantic.Field(6000, ge=1, description="Events wished for; no user meets an item twice.")
    days: int = pydantic.Field(60, ge=2, description="Days that the events span.")
    seed: int = pydantic.Field(0, ge=0, description="Seed of everything.")
    images: bool = pydantic.Field(True, description="Whether each item gets a picture.")
    implicit: bool = pydantic.Field(False, description="Clicks without value instead of ratings from 1 to 5.")
    repeats: bool = pydantic.Field(
        False, description="Lifelong histories: users meet items again, and all have as many events."
    )

    @pydantic.model_validator(mode="after")
    def _has_time(self) -> "SyntheticConfig":
        if self.repeats and self.events > 43_200 * self.days * self.users:
            raise ValueError("A user has more than an event in two seconds: give more days, or fewer events.")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What names the dataset; options that came later count once they are used."""
        return self.model_dump(exclude=set() if self.repeats else {"repeats"})


def _name(kind: str, number: pl.Expr, digits: int) -> pl.Expr:
    return pl.format(kind + "-{}", number.cast(pl.String).str.zfill(digits))


def _catalogue(config: SyntheticConfig, rng: np.random.Generator) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Items, their tastes [items, dims], and from when they are there (seconds after the first day)."""
    names = list(CUISINES)
    centres = rng.normal(size=(len(names), TASTE_DIMS))
    cuisine = rng.integers(0, len(names), config.items)
    mood, form = rng.integers(0, len(MOODS), config.items), rng.integers(0, len(FORMS), config.items)
    tastes = centres[cuisine] + 0.4 * rng.normal(size=(config.items, TASTE_DIMS))
    # One item in five comes later, so that there are new items to be tested on.
    late = rng.random(config.items) < 0.2
    since = np.where(late, rng.integers(0, config.days * 86_400 * 3 // 4, config.items), 0)
    rows = []
    for i in range(config.items):
        kitchen = names[cuisine[i]]
        first, second = rng.choice(CUISINES[kitchen], 2, replace=False)
        title = f"{MOODS[mood[i]].title()} {first.title()} {FORMS[form[i]]}"
        rows.append(
            {
                "item_id": f"dish-{i:05d}",
                "title": title,
                "description": f"A {MOODS[mood[i]]} {FORMS[form[i]].lower()} of the {kitchen} "
                f"kitchen with {first} and {second}.",
                "categories": f"{kitchen}|{FORMS[form[i]]}",
                "image_uri": f"images/dish-{i:05d}.png" if config.images else None,
                "available_from": (FIRST_DAY + dt.timedelta(seconds=int(since[i]))).isoformat(),
                "price": float(np.round(rng.uniform(3, 30), 2)),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"image_uri": pl.String}), tastes, since


def _events(
    config: SyntheticConfig, tastes: np.ndarray, since: np.ndarray, rng: np.random.Generator
) -> Iterator[pl.DataFrame]:
    """Events of some thousand users at a time, who take items by taste and popularity in a few sittings."""
    popularity = rng.gumbel(size=config.items)
    share = rng.lognormal(sigma=0.8, size=config.users)
    wanted = np.clip(np.round(share / share.sum() * config.events), 1, config.items).astype(int)
    for start in range(0, config.users, USERS_AT_ONCE):
        sizes = wanted[start : start + USERS_AT_ONCE]
        users = rng.normal(size=(len(sizes), TASTE_DIMS))
        liking = users @ tastes.T / np.sqrt(TASTE_DIMS)
        order = np.argsort(-(liking + 0.5 * popularity + rng.gumbel(size=liking.shape)), axis=1)
        user = np.repeat(np.arange(len(sizes)), sizes)
        item = np.concatenate([order[u, :n] for u, n in enumerate(sizes)])
        sitting = rng.integers(0, config.days, (len(sizes), 4))[user, rng.integers(0, 4, len(user))]
        # Several events share a second, as real clocks have it.
        second = (
            sitting * 86_400 + rng.integers(0, 86_400, len(sizes))[user] + rng.integers(0, 600, len(user)) // 20 * 20
        )
        second = np.maximum(second, since[item] + rng.integers(0, 86_400, len(user)))
        stars = np.clip(np.round(3.2 + 1.1 * liking[user, item] + 0.5 * rng.normal(size=len(user))), 1, 5)
        yield _rows(config, user + start, item, second, stars)


def _rows(
    config: SyntheticConfig, user: np.ndarray, item: np.ndarray, second: np.ndarray, stars: np.ndarray
) -> pl.DataFrame:
    """Events in the form of the contract, in the order of time."""
    base = int(FIRST_DAY.timestamp())
    rows = pl.DataFrame({"user": user, "item": item, "timestamp": second + base}).select(
        _name("cook", pl.col("user"), 6).alias("user_id"),
        _name("dish", pl.col("item"), 5).alias("item_id"),
        "timestamp",
        pl.lit("click" if config.implicit else "rating").alias("action"),
    )
    rows = rows if config.implicit else rows.with_columns(pl.Series("value", stars))
    return rows.sort("timestamp", maintain_order=True)


def _lifelong(
    config: SyntheticConfig, tastes: np.ndarray, since: np.ndarray, rng: np.random.Generator
) -> Iterator[pl.DataFrame]:
    """Events of histories in which items come back, in sittings over all days; memory is that of some users."""
    popularity, each = rng.gumbel(size=config.items), max(config.events // config.users, 1)
    there = np.flatnonzero(since == 0) if (since == 0).any() else np.arange(config.items)
    number = np.arange(each)
    slot = config.days * 86_400 / (number[-1] // SITTING + 1)
    step = int(np.clip(slot // (SITTING // 2 + 1), 1, 20))
    held: list[pl.DataFrame] = []
    for user in range(config.users):
        liking = tastes @ rng.normal(size=TASTE_DIMS) / np.sqrt(TASTE_DIMS)
        weight = np.exp(liking + 0.5 * popularity)
        item = rng.choice(config.items, each, p=weight / weight.sum())
        # Two events share a second, as real clocks have it; sittings never meet, so that no event comes twice.
        room = max(slot - step * (SITTING // 2 + 1), 0)
        begin = np.arange(number[-1] // SITTING + 1) * slot + rng.random(number[-1] // SITTING + 1) * room
        second = begin.astype(np.int64)[number // SITTING] + number % SITTING // 2 * step
        early = since[item] > second
        item[early] = rng.choice(there, int(early.sum()))
        twice = 1 + np.flatnonzero((second[1:] == second[:-1]) & (item[1:] == item[:-1]))
        item[twice] = there[(np.searchsorted(there, item[twice]) + 1) % len(there)]
        stars = np.clip(np.round(3.2 + 1.1 * liking[item] + 0.5 * rng.normal(size=each)), 1, 5)
        held.append(_rows(config, np.full(each, user), item, second, stars))
        if len(held) * each >= EVENTS_AT_ONCE:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


def draw_image(item: dict[str, Any]) -> bytes:
    """A PNG of 96 x 128: the colour tells the kitchen, the shape the form, the text the title."""
    from PIL import Image, ImageDraw

    kitchen, form = item["categories"].split("|")
    hue = list(CUISINES).index(kitchen) * 255 // len(CUISINES)
    image = Image.new("HSV", IMAGE_SIZE, (hue, 90, 235)).convert("RGB")
    pen = ImageDraw.Draw(image)
    kind, dark = FORMS.index(form), Image.new("HSV", (1, 1), (hue, 200, 120)).convert("RGB").getpixel((0, 0))
    if kind % 3 == 0:
        pen.ellipse((18, 24, 78, 84), fill=dark)
    elif kind % 3 == 1:
        pen.rectangle((20, 28, 76, 80), fill=dark)
    else:
        pen.polygon([(48, 20), (80, 84), (16, 84)], fill=dark)
    for ring in range(kind // 3):
        pen.ellipse((40 - 6 * ring, 46 - 6 * ring, 56 + 6 * ring, 62 + 6 * ring), outline="white")
    for line, word in enumerate(item["title"].split()[:3]):
        pen.text((6, 90 + 12 * line), word, fill="black")
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return sink.getvalue()


def write_synthetic(folder: str, config: SyntheticConfig) -> bool:
    """Writes a dataset in the form of the data contract.

    Args:
        folder: Where to; made if need be.
        config: What to draw.

    Returns:
        False if the folder already holds this very dataset.

    Raises:
        DatasetError: If the folder holds files of another origin, which would be overwritten.
    """
    root = UPath(folder).expanduser()
    marker, wanted = (
        root / "synthetic.version",
        version_of(generator=GENERATOR_VERSION, config=config.identity),
    )
    if marker.is_file() and marker.read_text() == wanted:
        return False
    if not marker.is_file() and root.is_dir() and any(root.iterdir()):
        raise DatasetError(
            f"The folder {folder} holds files that the synthetic generator did not write: name an empty one, or "
            "another layout in BELVEDERE_DATASET."
        )
    (root / "interactions").mkdir(parents=True, exist_ok=True)
    # A dataset that is cut short is nobody's, and is written again.
    marker.write_text("unfinished")
    for old in list((root / "interactions").iterdir()):
        old.unlink()
    rng = np.random.default_rng(config.seed)
    items, tastes, since = _catalogue(config, rng)
    (root / "items.csv").write_text(items.write_csv())
    draw = _lifelong if config.repeats else _events
    for number, rows in enumerate(draw(config, tastes, since, rng)):
        with (root / "interactions" / f"part-{number:05d}.parquet").open("wb") as sink:
            rows.write_parquet(sink)
    ids = pl.select(_name("cook", pl.int_range(config.users), 6).alias("user_id"))
    ages = pl.Series("age", rng.integers(18, 80, config.users))
    (root / "users.csv").write_text(ids.with_columns(ages).write_csv())
    if config.images:
        (root / "images").mkdir(exist_ok=True)
        for item in items.iter_rows(named=True):
            (root / item["image_uri"]).write_bytes(draw_image(item))
    marker.write_text(wanted)
    return True
