"""The candidates: what each is, what it reads and what it is meant to show. Adding one is adding a spec."""

import dataclasses
from typing import Any, Literal

import pydantic

from assets.knobs import Knobs
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.captions import CAPTION_TOKENS
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.warehouse import Table

CODE_VERSION = "5"

Kind = Literal["dlrm", "popularity", "item_knn", "markov_chain"]
Input = Literal["tokens", "summary"]


@dataclasses.dataclass(frozen=True)
class CandidateSpec:
    """A candidate.

    Attributes:
        name: Asset ``ranking/<name>``, registered model ``ranker_<name>``.
        kind: What is fitted: the DLRM-style network, or a floor.
        what: What it is, in half a sentence.
        hypothesis: What would be learned if it wins; the first line of the MLflow run's note.
        feature_service: Feast service that gives its inputs when it serves.
        inputs: Inputs beside ids, counts and recent items.
    """

    name: str
    kind: Kind
    what: str
    hypothesis: str
    feature_service: str
    inputs: tuple[Input, ...] = ()

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return f"ranker_{self.name}"

    @property
    def is_floor(self) -> bool:
        """Whether it is a floor: something that a model must beat."""
        return self.kind != "dlrm"

    @property
    def tables(self) -> tuple[Table, ...]:
        """Tables that it reads."""
        return (TRAINING_SET, ITEMS, *((CAPTION_TOKENS,) if "tokens" in self.inputs else ()))


CANDIDATES = (
    CandidateSpec(
        "popularity",
        "popularity",
        "the same list for everybody: smoothed like rate, and number of likes",
        "What everybody likes is a fair guess for anybody. Whatever does not beat this has learned nothing "
        "about the user.",
        "ranker_popularity_v1",
    ),
    CandidateSpec(
        "item_knn",
        "item_knn",
        "cosine neighbours of the user's recent likes",
        "Items that the same people like are alike: co-occurrence without learning is a strong floor.",
        "ranker_item_knn_v1",
    ),
    CandidateSpec(
        "markov_chain",
        "markov_chain",
        "transition counts from the last item to the next",
        "The last item alone says what comes next.",
        "ranker_markov_chain_v1",
    ),
    CandidateSpec(
        "dlrm",
        "dlrm",
        "a DLRM-style model of ids, as-of counts and recent items",
        "Learned embeddings with as-of features beat co-occurrence and popularity.",
        "ranker_dlrm_v1",
    ),
    CandidateSpec(
        "dlrm_captions",
        "dlrm",
        "`dlrm` with the tokens of generated captions on both sides, and their crosses",
        "What a language model says about an item helps most where ids know little: new and tail items.",
        "ranker_dlrm_captions_v1",
        ("tokens",),
    ),
    CandidateSpec(
        "dlrm_vista",
        "dlrm",
        "`dlrm` with target attention over the user's cached VISTA summary",
        "A summary of the whole history knows more than the last twenty items, most for long histories.",
        "ranker_dlrm_vista_v1",
        ("summary",),
    ),
)


class RankerConfig(Knobs):
    """What can be set in the Launchpad. All of it is part of a candidate's version."""

    seed: int = pydantic.Field(0, description="Seed of weights, dropout and order.")
    epochs: int = pydantic.Field(30, ge=1, description="Most epochs; training stops early by AUC on validation.")
    patience: int = pydantic.Field(3, ge=1, description="Epochs without a better AUC before it stops.")
    learning_rate: float = pydantic.Field(5e-3, gt=0, description="Learning rate.")
    batch_size: int = pydantic.Field(2048, ge=1, description="Most examples in a batch.")
    width: int = pydantic.Field(32, ge=1, description="Width of embeddings.")
    num_recent: int = pydantic.Field(20, ge=1, description="Recent items that are read.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users.")
    newest_trained: int = pydantic.Field(
        5000, ge=1, description="Events of a user's training period that are learned from, newest first."
    )
    newest_scored: int = pydantic.Field(
        1000, ge=1, description="Events of a user's validation, and of their test, that are scored, newest first."
    )

    @property
    def identity(self) -> dict[str, Any]:
        """What of it is part of a version; options that came later count once somebody sets them."""
        later = {"newest_trained", "newest_scored"}
        return self.model_dump(exclude={n for n in later if getattr(self, n) == type(self).model_fields[n].default})


def ranker_version(spec: CandidateSpec, tables: Tables, config: RankerConfig) -> str:
    """Identity of a candidate: its inputs, its code and its parameters."""
    return version_of(
        inputs={t.name: tables.version(t) for t in spec.tables},
        code=CODE_VERSION,
        kind=spec.kind,
        read=list(spec.inputs),
        feature_service=spec.feature_service,
        config=config.identity,
    )
