"""What the comparison of history models comes to: figures, paired differences, and what is said of them."""

import pydantic

from models.long_history.evaluation import LOWER_IS_BETTER
from models.ranking.evaluation import AUC, NDCG, Estimates, Row, differences, figures
from ray_jobs.histories.cells import CLICK, FLOORS, PEER, POPULARITY, Scored

SHUFFLED = "_shuffled"
COMPARED = (PEER, "sasrec", "hstu", "din")
"""Models that the others are compared with, beside the floors."""
JUDGED: dict[str, str] = {CLICK: AUC, "next_item": NDCG}
PUBLISHED_GAP = 0.002
"""VISTA's AUC is to be within that of HSTU's, or better (arXiv 2510.22049, Table 2, up to what seeds do there)."""


class Trial(pydantic.BaseModel, frozen=True):
    """One point of the grid; the same points for every family."""

    learning_rate: float = pydantic.Field(description="Learning rate.")
    dropout: float = pydantic.Field(description="Dropout.")


class Line(pydantic.BaseModel, frozen=True):
    """One figure of a model; see `ray_jobs.tables.history.HISTORY_MODELS`."""

    objective: str
    model: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float
    num_seeds: int
    num_examples: int
    num_users: int
    trial: str | None = None
    train_seconds: float | None = None
    verdict: str | None = None


class Tuned(pydantic.BaseModel, frozen=True):
    """A trial of a model, what it came to on validation, and whether it was chosen."""

    objective: str
    model: str
    trial: Trial
    valid: float
    chosen: bool


class Trained(pydantic.BaseModel, frozen=True):
    """One training of the chosen trial, with its metrics on the test split and its cost by name."""

    objective: str
    model: str
    seed: int
    metrics: dict[str, float]


class Result(pydantic.BaseModel, frozen=True):
    """What came out."""

    lines: list[Line] = pydantic.Field(description="Figures and paired differences.")
    tuned: list[Tuned] = pydantic.Field(description="Every trial, and which was chosen.")
    trainings: list[Trained] = pydantic.Field(description="Every training of a chosen trial.")
    num_trained: int = pydantic.Field(description="Trainings that this call ran.")
    num_found: int = pydantic.Field(description="Trainings of earlier calls.")
    seconds: float = pydantic.Field(description="Time of this call.")


def trained_of(objective: str, model: str, seed: int, scored: Scored) -> Trained:
    """A training with its metrics."""
    metrics = {f"test/{metric}": e.value for (_, metric), e in scored.found.items()}
    metrics |= {f"shuffled/{metric}": e.value for (_, metric), e in scored.placebo.items()}
    metrics |= {name: float(value) for name, value in scored.told.items()}
    return Trained(objective=objective, model=model, seed=seed, metrics=metrics)


def lines_of(objective: str, found: dict[str, Estimates], seeds: dict[str, int]) -> list[Line]:
    """Figures of all models of an objective, and their paired differences to floors and strong models.

    Args:
        objective: The objective.
        found: Estimates of each model, placebos among them, over seeds.
        seeds: Seeds of each.
    """
    made = []
    for model, mine in found.items():
        made += [_line(objective, model, seeds[model], row) for row in figures(mine)]
        placebo = model.endswith(SHUFFLED)
        others = (POPULARITY,) if placebo else (*FLOORS, *COMPARED)
        for other in others:
            if other == model or other not in found or model in FLOORS:
                continue
            for row in differences(mine, found[other], other):
                line = _line(objective, model, seeds[model], row)
                made.append(line.model_copy(update={"verdict": verdict(line)}))
    return made


def with_costs(lines: list[Line], tuned: list[Tuned], trainings: list[Trained]) -> list[Line]:
    """Lines with the trial that validation chose for their model, and what a training of it took."""
    trials = {(t.objective, t.model): t.trial.model_dump_json() for t in tuned if t.chosen}
    seconds: dict[tuple[str, str], list[float]] = {}
    for t in trainings:
        seconds.setdefault((t.objective, t.model), []).append(t.metrics["seconds"])
    made = []
    for line in lines:
        key = line.objective, line.model.removesuffix(SHUFFLED)
        spent = seconds.get(key)
        told = {"trial": trials.get(key), "train_seconds": sum(spent) / len(spent) if spent else None}
        made.append(line.model_copy(update=told))
    return made


def verdict(line: Line) -> str | None:
    """One sentence about a difference in the metric that decides; None for other lines."""
    if not line.baseline or line.metric != JUDGED[line.objective]:
        return None
    size = f"{line.value:+.4f} [{line.low:+.4f}, {line.high:+.4f}] {line.metric}"
    named = f"{line.objective}: {line.model} against {line.baseline}: {size}"
    if line.low <= 0 <= line.high:
        return f"{named}: covers zero, so no difference is shown."
    better = (line.value > 0) != (line.metric in LOWER_IS_BETTER)
    return f"{named}: {'better' if better else 'worse'}."


def _line(objective: str, model: str, num_seeds: int, row: Row) -> Line:
    told = row._asdict()
    del told["slice"]
    return Line(objective=objective, model=model, num_seeds=num_seeds, **told)
