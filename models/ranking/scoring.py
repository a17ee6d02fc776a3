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
from models.ranking.crosses import TokenCrosses, Vocabulary
from models.ranking.dlrm import DLRM, Batch, Catalogue, DLRMConfig
from models.ranking.examples import Examples, Preprocessing
from models.ranking.floors import FLOORS, Floor

ROWS_AT_ONCE = 8192
DLRM_KIND = "dlrm"


def to_batch(x: Examples, device: torch.device | str = "cpu") -> Batch:
    """`Examples` as tensors."""
    # What comes out of Arrow or Ray is read-only, which a tensor cannot be.
    return Batch(*(torch.from_numpy(np.require(a, requirements=("C", "W"))).to(device) for a in x))


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

    @functools.cached_property
    def crosses(self) -> TokenCrosses:
        """What makes the crosses of a request, out of what the artifact holds."""
        m = self.model
        tokens_IT, token_V, idf_V = (t.cpu().numpy() for t in (m.catalogue_IT, m.token_V, m.idf_V))
        return TokenCrosses(tokens_IT, Vocabulary(token_V, idf_V), m.config.decay, m.config.profile_tokens)

    @torch.inference_mode()
    def like(self, x: Examples) -> np.ndarray:
        """See `Floor.like`."""
        parts = []
        for start in range(0, x.num_rows, ROWS_AT_ONCE):
            part = x.take(slice(start, start + ROWS_AT_ONCE))
            if self.model.config.num_crosses and not part.crosses_NC.shape[1]:
                part = part._replace(crosses_NC=self.crosses(part))
            batch = to_batch(part, self.device)
            user = self.model.user(batch, self.catalogue)
            parts.append(self.model.like_logit(batch, user, self.catalogue).double().cpu().numpy())
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
