"""Compares candidates by their predictions: figures of each, and paired differences to the baselines."""

import hashlib
import sys

import pyarrow.compute as pc
import pydantic

from models.ranking.evaluation import Estimates, Rules, differences, estimate, figures
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.ranking.evaluation import Figure, scored_of, slice_masks
from ray_jobs.tables.ranking import predictions
from ray_jobs.warehouse import Warehouse


class Config(pydantic.BaseModel, frozen=True):
    """What to compare."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    candidates: tuple[str, ...] = pydantic.Field(description="Candidates, each with a table of predictions.")
    baselines: tuple[str, ...] = pydantic.Field(("dlrm", "popularity"), description="What they are compared with.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users.")


class Line(Figure, frozen=True):
    """A figure of a candidate."""

    candidate: str


class Result(pydantic.BaseModel, frozen=True):
    """The comparison."""

    lines: list[Line] = pydantic.Field(description="Figures and paired differences.")
    left_out: list[str] = pydantic.Field(description="Figures that were left out, and why.")


def run(config: Config) -> Result:
    """Resamples every candidate once, with the same users, and subtracts.

    Raises:
        ValueError: If two candidates did not score the same examples.
    """
    found: dict[str, Estimates] = {}
    left_out: list[str] = []
    examples: set[str] = set()
    for name in config.candidates:
        table = config.warehouse.read(predictions(name), filters=pc.field("split") == "test")
        examples.add(hashlib.sha256("\n".join(sorted(table["example_id"].to_pylist())).encode()).hexdigest())
        if len(examples) > 1:
            raise ValueError(
                f"ranking/{name} scored other examples than ranking/{config.candidates[0]}, so "
                f"that they cannot "
                "be compared: materialize every candidate on the present features/training_set."
            )
        found[name], left_out = estimate(scored_of(table), slice_masks(table), Rules(config.resamples))
    lines = [Line(candidate=name, **row._asdict()) for name in found for row in figures(found[name])]
    lines += [
        Line(candidate=name, **row._asdict())
        for baseline in config.baselines
        if baseline in found
        for name in found
        if name != baseline
        for row in differences(found[name], found[baseline], baseline)
    ]
    return Result(lines=lines, left_out=left_out)


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
