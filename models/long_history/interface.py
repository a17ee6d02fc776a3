"""The one interface of all rankers over long histories: what is kept of a history, and candidates against it.

Shapes: B users, L events of a history, C candidates, I rows of the item table, D width.
"""

import abc
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.long_history.inputs import History, Items

Encoding = Any
"""Whatever a model keeps of histories: a tensor, or a tree of tensors, all with the users first."""


class ModelOutput(NamedTuple):
    """Output of the joint pass.

    Attributes:
        logits_BC: One logit a candidate.
        auxiliary: Loss beside the task's, already weighted; 0 for models that have none.
    """

    logits_BC: Tensor
    auxiliary: Tensor


class HistoryModel(nn.Module, abc.ABC):
    """A ranker in two halves, so that what depends on the history alone can be computed once and kept.

    Law, held by tests for every family: ``forward(h, c).logits_BC == score(encode_history(h), c)`` in eval mode,
    padding changes nothing, and a candidate's logit does not depend on the others.
    """

    @abc.abstractmethod
    def encode_history(self, history: History) -> Encoding:
        """All that candidates need of the history; knows no candidate. Histories may be empty."""

    @abc.abstractmethod
    def score(self, encoding: Encoding, candidates: Items) -> Tensor:
        """Logits that the user likes each candidate, B x C."""

    def forward(self, history: History, candidates: Items) -> ModelOutput:
        """Both halves, and the model's own loss in training."""
        logits_BC = self.score(self.encode_history(history), candidates)
        return ModelOutput(logits_BC, logits_BC.new_zeros(()))


class NextItemModel(HistoryModel):
    """A causal model that says at every place of the history which item comes next, by inner products."""

    @abc.abstractmethod
    def states(self, history: History) -> Tensor:
        """What the user is after each event, B x L x D: that at place i has seen the events 0..i and nothing later.

        It does not know the time of the next event, which nobody knows when the next item is chosen.
        """

    @abc.abstractmethod
    def item_vectors(self, items: Items) -> Tensor:
        """Vectors (... x D) whose inner products with a state are the next item's logits."""


State = Any
"""What an incremental model remembers of a history, a tree of tensors with the users first, of a size that does not
grow with the history."""


class IncrementalModel(HistoryModel):
    """A model whose memory of a history is brought up to date by the new events alone.

    Law: for any split of a history into parts, extending part by part gives the state of the whole, within float
    error. So a cache of states is refreshed in time proportional to what is new.
    """

    @abc.abstractmethod
    def empty_state(self, num_users: int) -> State:
        """The state of users without events."""

    @abc.abstractmethod
    def extend(self, state: State, events: History) -> State:
        """The state after ``events``, which follow those that ``state`` has seen; their gaps reach back to these."""

    @abc.abstractmethod
    def read(self, state: State) -> Encoding:
        """What candidates need; the same as ``encode_history`` of all events seen."""

    def encode_history(self, history: History) -> Encoding:
        """See `HistoryModel.encode_history`."""
        return self.read(self.extend(self.empty_state(len(history.lengths_B)), history))
