"""What content is worth to a ranker: the arms of the experiment, intervals over users and seeds, and the verdict.

Shape letters: R resamples, S seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.ranking.evaluation import Estimate, Estimates, Row, excludes_zero

NONE, TITLE, DENSE, TOKENS, TOKENS_DENSE = CONTENTS = ("none", "title", "dense", "tokens", "tokens_dense")
TITLE_PERMUTED, DENSE_PERMUTED, TOKENS_PERMUTED, TOKENS_RANDOM = PLACEBOS = (
    "title_permuted",
    "dense_permuted",
    "tokens_permuted",
    "tokens_random",
)
PLACEBOS_OF = {
    TITLE: (TITLE_PERMUTED,),
    DENSE: (DENSE_PERMUTED,),
    TOKENS: (TOKENS_PERMUTED, TOKENS_RANDOM),
    TOKENS_DENSE: (TOKENS_PERMUTED, TOKENS_RANDOM, DENSE_PERMUTED),
}
# Zhu et al. 2026 (arXiv 2605.09338), abstract: offline AUC of a production ranker, relative.
PUBLISHED_LIFT = 0.0035


class Arm(NamedTuple):
    """One arm of the experiment.

    Attributes:
        content: What the ranker knows of an item's content, out of `CONTENTS` and `PLACEBOS`.
        item_ids: Whether it also knows items by their IDs.
    """

    content: str
    item_ids: bool

    @property
    def name(self) -> str:
        """E.g. ``tokens-ids``."""
        return f"{self.content}-{'ids' if self.item_ids else 'no_ids'}"

    @property
    def baseline(self) -> "Arm":
        """The arm without content that it is compared with."""
        return Arm(NONE, self.item_ids)

    @property
    def placebos(self) -> "list[Arm]":
        """Its placebos: as many parameters and as much input, without the meaning."""
        return [Arm(content, self.item_ids) for content in PLACEBOS_OF.get(self.content, ())]


def all_arms() -> list[Arm]:
    """Every arm, with IDs first."""
    return [Arm(content, ids) for ids in (True, False) for content in (*CONTENTS, *PLACEBOS)]


def seed_draws(num_seeds: int, resamples: int, seed: int) -> np.ndarray:
    """How often each seed is drawn in each resample, (R, S). The same for all arms, so that differences are paired."""
    rng = np.random.default_rng([seed, 1])
    return rng.multinomial(num_seeds, np.full(num_seeds, 1.0 / num_seeds), size=resamples)


def over_seeds(found: Sequence[Estimates], seed: int) -> Estimates:
    """Estimates of an arm: the mean over seeds, resampled over users and over seeds.

    Every seed was resampled with the same users, so that a resample is a draw of users and a draw of seeds: the
    pigeonhole bootstrap of crossed factors, which errs on the wide side (Owen 2007, Annals of Applied Statistics 1).
    A bootstrap of S seeds underestimates their variance by the factor (S - 1) / S, which matters when there are five:
    deviations from the mean of seeds are scaled up by its root.

    Args:
        found: Estimates of each seed, by the same rules.
        seed: Seed of the draws.
    """
    num = len(found)
    scale = (num / (num - 1)) ** 0.5 if num > 1 else 0.0
    made: Estimates = {}
    for key in found[0]:
        each = [e[key] for e in found if key in e]
        if len(each) < num:
            continue
        draws_SR = np.stack([e.draws_R for e in each])
        share_RS = seed_draws(num, draws_SR.shape[1], seed) / num
        mean_R = draws_SR.mean(0)
        deviation_R = np.einsum("rs,sr->r", share_RS, draws_SR - mean_R)
        value = float(np.mean([e.value for e in each]))
        made[key] = Estimate(value, mean_R + scale * deviation_R, each[0].num_examples, each[0].num_users)
    return made


class Verdict(NamedTuple):
    """What is concluded of an arm.

    Attributes:
        counts: Whether its lift counts.
        sentence: Why, in one sentence.
    """

    counts: bool
    sentence: str


def _said(row: Row) -> str:
    return f"{row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"


def verdict(arm: Arm, lift: Row, relative: float, placebos: dict[str, Row], num_seeds: int) -> Verdict:
    """Judges a difference in AUC: it counts only if its interval excludes zero and those of its placebos cover zero.

    Args:
        arm: The arm.
        lift: Its difference to the arm without content.
        relative: The same, relative to that arm.
        placebos: Differences of its placebos to the same arm, by name.
        num_seeds: Seeds that the intervals are over.
    """
    named = f"{arm.content} {'beside' if arm.item_ids else 'without'} item IDs ({lift.slice})"
    said = f"{named}: AUC {_said(lift)}, {relative:+.2%} relative"
    wanted = [p.content for p in arm.placebos]
    missing = [name for name in wanted if name not in placebos]
    telling = {name: row for name, row in placebos.items() if excludes_zero(row)}
    if not excludes_zero(lift):
        return Verdict(False, f"{said}: the interval covers zero, so that no lift is shown.")
    if lift.value < 0:
        return Verdict(False, f"{said}: worse than no content.")
    if num_seeds < 2:
        return Verdict(False, f"{said}: does not count, because one seed says nothing about the next.")
    if missing:
        return Verdict(False, f"{said}: does not count, because its placebo was not run ({', '.join(missing)}).")
    if telling:
        shown = "; ".join(f"{name} {_said(row)}" for name, row in telling.items())
        return Verdict(False, f"{said}: does not count, because the interval of a placebo excludes zero too ({shown}).")
    covering = " and ".join(f"{name} {_said(row)}" for name, row in placebos.items())
    return Verdict(True, f"{said}: counts, because {covering} cover{'s' if len(placebos) == 1 else ''} zero.")
