"""What every claim says of itself, and how equality is proven."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from benchmarks import long_history


@dataclasses.dataclass(frozen=True)
class Options:
    """How claims are measured.

    Attributes:
        repeats: Rounds of each timing.
        threads: Threads of every contender.
        scale: Share of every size; 1 is what the targets speak of, less is a trial.
    """

    repeats: int = 5
    threads: int = 1
    scale: float = 1.0

    def size(self, count: int) -> int:
        """``count`` in this scale, at least 1."""
        return max(round(count * self.scale), 1)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        claim: What was compared with what.
        target: The ratio that was asked for, in words.
        ratio: The ratio that was found; None where the claim has no target.
        held: Whether it holds; None where the claim has no target.
        detail: Medians with their spread, and how equal the results were.
    """

    claim: str
    target: str
    ratio: float | None
    held: bool | None
    detail: str

    def row(self) -> str:
        """A row of a Markdown table."""
        ratio = "" if self.ratio is None else f"{self.ratio:,.2f}x"
        held = {True: "yes", False: "**no**", None: ""}[self.held]
        return f"| {self.claim} | {self.target} | {ratio} | {held} | {self.detail} |"


HEADER = "| claim | target | found | holds | detail |\n|---|---|---|---|---|"


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Every module of this package that measures a claim, by name."""
    for found in sorted(pkgutil.iter_modules(long_history.__path__), key=lambda m: m.name):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"{long_history.__name__}.{found.name}")
            if hasattr(module, "measure"):
                yield found.name, module


def prove_equal(what: str, ours: Any, peers: Any, *, relative: float = 1e-4, absolute: float = 1e-5) -> float:
    """Largest absolute difference of two tensors that have to be equal within float error.

    Args:
        what: What is compared, for the message.
        ours: Our tensor.
        peers: The other one.
        relative: Relative tolerance.
        absolute: Absolute tolerance.

    Raises:
        SystemExit: If they are not equal; nothing is to be timed then.
    """
    difference = float((ours.detach() - peers.detach()).abs().max())
    if not torch.allclose(ours, peers, rtol=relative, atol=absolute):
        raise SystemExit(f"{what}: the results differ by up to {difference:.2e}, so nothing is timed.")
    return difference
