"""A ranker as everybody uses it: preprocessing, scorer and calibration in one, for evaluation and for serving.

Shape letters: N examples, I catalogue.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.ranking.calibration import Platt
from models.ranking.dlrm import DLRM, Batch, Catalogue, DLRMConfig
from models.ranking.examples import Examples, Preprocessing
from models.ranking.floors import FLOORS, Floor

ROWS_AT_ONCE = 8192
DLRM_KIND = "dlrm"


def to_batch(x: Examples, device: torch.device | str = "cpu") -> Batch:
    """`Examples` as tensors."""
    return Batch(*(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in x))


class NeuralScorer:
    """A trained `DLRM` with the interface of the floors."""

    def __init__(self, model: DLRM):
        self.model = model.eval()
        self.device = next(model.parameters()).device

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """Item vectors, made once: they cost as much as the catalogue is large, whatever a request asks for."""
        with torch.inference_mode():
            return self.model.catalogue()

    @torch.inference_mode()
    def like(self, x: Examples) -> np.ndarray:
        """See `Floor.like`."""
        parts = []
        for start in range(0, x.num_rows, ROWS_AT_ONCE):
            batch = to_batch(x.take(slice(start, start + ROWS_AT_ONCE)), self.device)
            parts.append(self.model.like_logit(batch, self.model.user(batch, self.catalogue)).double().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0)

    @torch.inference_mode()
    def interest(self, x: Examples) -> np.ndarray:
        """See `Floor.interest`."""
        items = torch.arange(1, self.model.config.num_items + 1, device=self.device)
        user = self.model.user(to_batch(x, self.device), self.catalogue)
        return self.model.interest_logits(user, self.catalogue, items).cpu().numpy()


@dataclasses.dataclass(frozen=True)
class Ranker:
    """A trained candidate.

    Attributes:
        kind: ``dlrm`` or the name of a floor.
        config: Constructor arguments of the scorer, as JSON values.
        preprocessing: How feature rows become arrays.
        calibration: How log-odds become probabilities.
        scorer: What scores.
    """

    kind: str
    config: dict[str, Any]
    preprocessing: Preprocessing
    calibration: Platt
    scorer: Floor | NeuralScorer

    def score(self, data: pa.Table) -> np.ndarray:
        """Calibrated P(like) of feature rows, (N,)."""
        return self.calibration(self.scorer.like(self.preprocessing.transform(data)))

    def weights(self) -> dict[str, np.ndarray]:
        """Everything learned, by name."""
        if isinstance(self.scorer, NeuralScorer):
            return {k: v.detach().cpu().contiguous().numpy() for k, v in self.scorer.model.state_dict().items()}
        return self.scorer.arrays


def build_scorer(kind: str, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Floor | NeuralScorer:
    """Rebuilds a scorer out of what `Ranker` holds.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind in FLOORS:
        return FLOORS[kind](weights)
    if kind != DLRM_KIND:
        raise ValueError(f"There is no ranker of the kind {kind}: it is one of {DLRM_KIND}, {', '.join(FLOORS)}.")
    model = DLRM(DLRMConfig(**config))
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
    return NeuralScorer(model)
