"""How many events of a user a training learns from and is scored on: tables of examples, read from there on."""

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from ray_jobs.warehouse import Table, Warehouse

ROWS_AT_ONCE = 100_000


class Newest(pydantic.BaseModel, frozen=True):
    """How much of a long history is learned from and scored: the newest events of each split, and their negatives.

    What is older is still in the features and histories of these; it is not to be foretold. So cost and memory do not
    grow with how long histories are, and somebody with a million events does not outvote everybody else.
    """

    trained: int = pydantic.Field(5000, ge=1, description="Newest events of a user's training period.")
    scored: int = pydantic.Field(1000, ge=1, description="Newest events of a user's validation, and of their test.")


def read_newest(
    warehouse: Warehouse,
    table: Table,
    columns: list[str],
    newest: Newest,
    version: str | None = None,
    splits: tuple[str, ...] | None = None,
) -> pa.Table:
    """Rows of a table of examples (``user_id``, ``split``, ``position``, ``sampled``) that are learned from or scored.

    Args:
        warehouse: The warehouse.
        table: The table.
        columns: Columns to read, those three among them.
        newest: Events of a user that are read.
        version: Version that is expected.
        splits: Splits whose rows are read; None: all.
    """
    first = _first_places(warehouse, table, version, newest)
    wanted = pc.scalar(True) if splits is None else pc.field("split").isin(pa.array(splits, pa.string()))
    if not first.height:
        return warehouse.read(table, columns, wanted, expect_version=version)
    least = int(first["first"].min())  # type: ignore[arg-type]
    whole = ~pc.field("user_id").isin(first["user_id"].unique().to_arrow().cast(pa.string()))
    read = wanted & (whole | (pc.field("position") >= least))
    found = warehouse.batches(table, columns, read, ROWS_AT_ONCE, expect_version=version)
    return pa.concat_tables(_since(part, first) for part in found)


def _first_places(warehouse: Warehouse, table: Table, version: str | None, newest: Newest) -> pl.DataFrame:
    """Where reading begins for users who have more than is read: ``user_id``, ``split``, ``first`` (a position)."""
    by = ["user_id", "split"]
    allowed = pl.when(pl.col("split") == "train").then(newest.trained).otherwise(newest.scored)
    held = pl.DataFrame(schema={"user_id": pl.String, "split": pl.String, "position": pl.Int32, "events": pl.Int64})
    read = [*by, "position"]
    for part in warehouse.batches(table, read, ~pc.field("sampled"), ROWS_AT_ONCE, expect_version=version):
        events = pl.DataFrame(part).with_columns(pl.lit(1, pl.Int64).alias("events"))
        both = pl.concat([held, events]).group_by(by)
        held = both.agg(pl.col("position").top_k(allowed.first()), pl.col("events").sum()).explode("position")
        # The count stands on one row of each user and split.
        held = held.with_columns(pl.when(pl.int_range(pl.len()).over(by) == 0).then("events").otherwise(0))
    long = held.filter(pl.col("events").sum().over(by) > allowed)
    return long.group_by(by).agg(pl.col("position").min().alias("first"))


def _since(part: pa.Table, first: pl.DataFrame) -> pa.Table:
    """The rows of ``part`` that are read."""
    frame = pl.DataFrame(part.select(["user_id", "split", "position"])).join(
        first, on=["user_id", "split"], how="left", maintain_order="left"
    )
    return part.filter(pa.array((frame["position"] >= frame["first"].fill_null(0)).to_numpy()))
