"""The layouts in which GroupLens publishes MovieLens: 100k (tab and bar), 1M (double colon), latest (CSV)."""

from collections.abc import Iterator

import polars as pl

from assets.interactions.readers.base import POSITION, Batch, DatasetError, Reader, no_rows
from assets.interactions.readers.contract import attributes_json
from assets.interactions.readers.delimited import Dialect, Rows, scan_text

RATINGS = ("user_id", "item_id", "value", "timestamp")
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
YEAR = r"\s*\((\d{4})\)\s*$"


def _described(rows: pl.DataFrame, known: tuple[str, ...]) -> pl.DataFrame:
    extra = [n for n in rows.columns if n not in known and n != POSITION]
    return rows.select(POSITION, *known, attributes_json(extra, rows))


def _titled(rows: pl.DataFrame) -> pl.DataFrame:
    """Moves the year from the end of the title to the attribute ``release_year``."""
    return rows.with_columns(
        pl.col("title").str.extract(YEAR).alias("release_year"), pl.col("title").str.replace(YEAR, "")
    )


class MovieLens100K(Reader):
    """``movielens-100k:<folder>`` with ``u.data``, ``u.item`` and ``u.user``, in Latin-1."""

    layout = "movielens-100k"

    def interactions(self) -> Iterator[Batch]:
        """See `Reader.interactions`."""
        dialect = Dialect("\t", quoted=False, encoding="latin-1", columns=RATINGS)
        for _, read in scan_text(self.file("u.data"), "u.data", dialect):
            yield Batch("u.data", read.rows.with_columns(pl.lit("rating").alias("action")), read.faults)

    def items(self) -> Iterator[Batch]:
        """See `Reader.items`."""
        names = ("item_id", "title", "release_date", "video_release_date", "imdb_url", *GENRES_100K)
        dialect = Dialect("|", quoted=False, encoding="latin-1", columns=names)
        for _, read in scan_text(self.file("u.item"), "u.item", dialect):
            flags = [pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in GENRES_100K[1:]]
            rows = _titled(read.rows).with_columns(pl.concat_list(flags).list.drop_nulls().alias("categories"))
            rows = rows.drop(*GENRES_100K, "video_release_date")
            yield Batch("u.item", _described(rows, ("item_id", "title", "categories")), read.faults)

    def users(self) -> Iterator[Batch]:
        """See `Reader.users`."""
        dialect = Dialect(
            "|",
            quoted=False,
            encoding="latin-1",
            columns=("user_id", "age", "gender", "occupation", "zip_code"),
        )
        for _, read in scan_text(self.file("u.user"), "u.user", dialect):
            yield Batch("u.user", _described(read.rows, ("user_id",)), read.faults)


class MovieLens1M(Reader):
    """``movielens-1m:<folder>`` with ``ratings.dat``, ``movies.dat`` and ``users.dat``, in Latin-1."""

    layout = "movielens-1m"

    def interactions(self) -> Iterator[Batch]:
        """See `Reader.interactions`."""
        for read in self._scan("ratings.dat", RATINGS):
            yield Batch("ratings.dat", read.rows.with_columns(pl.lit("rating").alias("action")), read.faults)

    def items(self) -> Iterator[Batch]:
        """See `Reader.items`."""
        for read in self._scan("movies.dat", ("item_id", "title", "categories")):
            rows = _described(_titled(read.rows), ("item_id", "title", "categories"))
            yield Batch("movies.dat", rows, read.faults)

    def users(self) -> Iterator[Batch]:
        """See `Reader.users`."""
        for read in self._scan("users.dat", ("user_id", "gender", "age", "occupation", "zip_code")):
            yield Batch("users.dat", _described(read.rows, ("user_id",)), read.faults)

    def _scan(self, name: str, columns: tuple[str, ...]) -> Iterator[Rows]:
        dialect = Dialect("::", quoted=False, encoding="latin-1", columns=columns)
        return (read for _, read in scan_text(self.file(name), name, dialect))


class MovieLensLatest(Reader):
    """``movielens-latest:<folder>`` with ``ratings.csv`` and ``movies.csv``; also 20M, 25M and 32M."""

    layout = "movielens-latest"

    def interactions(self) -> Iterator[Batch]:
        """See `Reader.interactions`."""
        names = {"userId": "user_id", "movieId": "item_id", "rating": "value", "timestamp": "timestamp"}
        for read in self._scan("ratings.csv", names):
            rows = read.rows.select(POSITION, *names.values(), pl.lit("rating").alias("action"))
            yield Batch("ratings.csv", rows, read.faults)

    def items(self) -> Iterator[Batch]:
        """See `Reader.items`."""
        for read in self._scan("movies.csv", {"movieId": "item_id", "title": "title", "genres": "categories"}):
            none = pl.col("categories") == "(no genres listed)"
            rows = _titled(read.rows.with_columns(pl.when(~none).then(pl.col("categories")).alias("categories")))
            yield Batch("movies.csv", _described(rows, ("item_id", "title", "categories")), read.faults)

    def _scan(self, name: str, names: dict[str, str]) -> Iterator[Rows]:
        for columns, read in scan_text(self.file(name), name, Dialect()):
            missing = [n for n in names if n not in columns] if columns else []
            if missing:
                raise DatasetError(
                    f"The file {name} has no column {' and no column '.join(missing)} (it has "
                    f"{', '.join(columns)}): take the file as GroupLens publishes it."
                )
            yield Rows(read.rows.rename(names) if columns else no_rows(tuple(names.values())), read.faults)
