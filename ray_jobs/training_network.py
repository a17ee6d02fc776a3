"""The network that is trained: as the steps of all workers call it, and whole, as evaluation and checkpoints need it.

Checkpoints know no strategy: weights and the optimiser's state are those that one process would have, so that a
training may go on by another strategy or on another number of workers.
"""

import copy
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree

from ray_jobs.acceleration import Acceleration
from ray_jobs.training_task import Task, TrainingOptions


class TrainedNetwork:
    """A network, its optimiser, and how both are spread over the workers.

    Attributes:
        steps: What the loss calls: compiled, replicated or sharded.
        whole: The plain network. If it is sharded, rank 0 has the weights of the last `gather`, others have none.
        optimizer: Of the weights that the steps change.
    """

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        options: TrainingOptions,
        acceleration: Acceleration,
        *,
        rank: int,
        world: int,
        optimizer_state: dict[str, Any] | None,
    ):
        """Spreads ``model``, which has the same weights on every rank, and gives the optimiser its state."""
        self.rank, self.whole, self.trained = rank, model, model
        self.sharded = world > 1 and acceleration.strategy == "fsdp"
        if self.sharded:
            self.trained = copy.deepcopy(model) if rank == 0 else model
            _shard(self.trained, world)
        self.optimizer = task.optimizer(self.trained, options)
        if optimizer_state is not None:
            self.optimizer.load_state_dict(_sharded_like(self.optimizer, optimizer_state))
        self.steps = _compiled(self.trained) if acceleration.compile else self.trained
        if world > 1 and not self.sharded:
            from ray.train.torch import prepare_model

            # A loss may leave parts out: a start state that no history of the batch needs, another objective's head.
            leaving_out = {"find_unused_parameters": True}
            self.steps = prepare_model(self.steps, move_to_device=False, parallel_strategy_kwargs=leaving_out)

    def gather(self) -> dict[str, Any]:
        """Brings `whole` up to date; every rank must call it. Returns the whole state of the optimiser, on rank 0."""
        if self.sharded:
            weights = self._whole(self.trained.state_dict())
            if self.rank == 0:
                self.whole.load_state_dict(weights)
        return self._whole(self.optimizer.state_dict())

    def _whole(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree with whole tensors in place of shards; the ranks beside 0 drop them one by one."""

        def joined(shards: DTensor) -> torch.Tensor:
            found = shards.full_tensor()
            return found if self.rank == 0 else found.new_empty(0)

        return pytree.tree_map_only(DTensor, joined, tree)


def _shard(model: torch.nn.Module, world: int) -> None:
    """Leaves each rank its share of every parameter, gradient and state; a step gathers the parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # The network as one: parts that are used otherwise than by calling them would find no parameters of their own.
    fully_shard(model, mesh=init_device_mesh(next(model.parameters()).device.type, (world,)))


def _sharded_like(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The whole state with this rank's share of all that belongs to a sharded parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def share(parameter: Any, value: Any) -> Any:
        if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
            return value
        placed = value.to(parameter.device)
        # Every rank has read the checkpoint: nobody needs to send it.
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)

    shares = {i: {k: share(parameters[i], v) for k, v in values.items()} for i, values in state["state"].items()}
    return state | {"state": shares}


def _compiled(model: torch.nn.Module) -> Any:
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError(
            "Steps cannot be compiled without a C++ compiler: install g++, or set BELVEDERE_TRAIN_COMPILE=false."
        )
    compiled: Callable[..., Any] = torch.compile
    # Dropout draws the same numbers as without compiling.
    return compiled(model, options={"fallback_random": True})
