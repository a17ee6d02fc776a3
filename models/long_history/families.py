"""Every model of long histories by its name in configs and reports."""

from typing import Any, NamedTuple

from models.long_history.inputs import HistoryModelConfig
from models.long_history.interface import HistoryModel
from models.vista.causal import CausalVista, CausalVistaConfig
from models.vista.model import Vista, VistaConfig


class Family(NamedTuple):
    """A kind of model.

    Attributes:
        config: Class of its constructor arguments.
        model: Its class.
    """

    config: type[HistoryModelConfig]
    model: type[HistoryModel]

    def build(self, **arguments: Any) -> HistoryModel:
        """The network with these constructor arguments."""
        build: Any = self.model
        return build(self.config(**arguments))


FAMILIES = {
    "vista": Family(VistaConfig, Vista),
    "vista_causal": Family(CausalVistaConfig, CausalVista),
}
