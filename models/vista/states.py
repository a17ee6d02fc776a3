"""States of incremental models as bytes, one row a user: what a refresh starts from."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils import _pytree as pytree

from models.long_history.interface import IncrementalModel, State

STATE_FORMAT = "1"
"""Of these bytes: the leaves of the state one after the other, each in its own type. Bump when that changes."""


def pack(state: State) -> pa.Array:
    """One binary value a user."""
    leaves = [x.detach().cpu().contiguous() for x in pytree.tree_leaves(state)]
    num = len(leaves[0])
    rows = np.concatenate([leaf.reshape(num, -1).numpy().view(np.uint8).reshape(num, -1) for leaf in leaves], axis=1)
    return pa.array([row.tobytes() for row in rows], pa.binary())


def unpack(model: IncrementalModel, packed: list[bytes | None]) -> State:
    """States out of `pack`; the empty state where there is none.

    Raises:
        ValueError: If a state is not of this model's size.
    """
    empty = model.empty_state(len(packed))
    leaves, tree = pytree.tree_flatten(empty)
    known = [n for n, row in enumerate(packed) if row]
    if not known:
        return empty
    sizes = [leaf[0].numel() * leaf.element_size() for leaf in leaves]
    if wrong := {len(packed[n] or b"") for n in known} - {sum(sizes)}:
        raise ValueError(
            f"A state of {wrong.pop()} bytes is not of this model, whose states have {sum(sizes)}: materialize "
            "vista/user_summaries, which computes all of them anew."
        )
    rows = np.frombuffer(b"".join(packed[n] or b"" for n in known), np.uint8).reshape(len(known), -1)
    filled, at = [], 0
    for leaf, size in zip(leaves, sizes, strict=True):
        made: Any = leaf.clone()
        bytes_ = np.ascontiguousarray(rows[:, at : at + size])
        values = torch.from_numpy(bytes_).view(leaf.dtype).reshape(len(known), *leaf.shape[1:])
        made[torch.tensor(known)] = values.to(leaf.device)
        filled.append(made)
        at += size
    return pytree.tree_unflatten(filled, tree)
