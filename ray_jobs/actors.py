"""Pools of actors over blocks of rows, as the jobs of the lineage run them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from ray.data import Dataset

# Ray Data's own default is without end: a block that kills its actor would be worked at, and paid for, for ever.
RESTARTS = 2


def map_blocks(
    blocks: Sequence[pa.Table],
    actor: type,
    arguments: tuple[Any, ...],
    *,
    actors: int,
    cpus: float,
    gpus: float = 0.0,
    batch_format: str = "pyarrow",
) -> "Dataset":
    """Hands every block whole to one of a pool of actors. Nothing runs before the result is read.

    Args:
        blocks: Rows; a block is one call, whose results come back before the next block's.
        actor: Class of the actors: called with a block, it returns rows.
        arguments: Arguments of its constructor.
        actors: Most actors; no more start than there are blocks.
        cpus: CPUs of an actor.
        gpus: GPUs of an actor, or a fraction of one.
        batch_format: What an actor takes: ``pyarrow`` or ``numpy``.
    """
    import ray.data

    return ray.data.from_arrow(list(blocks)).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format=batch_format,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(blocks))),
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
