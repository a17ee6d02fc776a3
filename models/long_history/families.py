"""Every model of long histories by its name in configs and reports."""

from typing import Any, NamedTuple

from models.long_history.din import Din, DinConfig
from models.long_history.hstu import Hstu, HstuConfig
from models.long_history.inputs import HistoryModelConfig
from models.long_history.interface import HistoryModel
from models.long_history.mtgr import Mtgr, MtgrConfig
from models.long_history.sasrec import Sasrec, SasrecConfig
from models.long_history.sim import Sim, SimConfig
from models.long_history.twin import Twin, TwinConfig
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
    "din": Family(DinConfig, Din),
    "sim": Family(SimConfig, Sim),
    "twin": Family(TwinConfig, Twin),
    "sasrec": Family(SasrecConfig, Sasrec),
    "hstu": Family(HstuConfig, Hstu),
    "mtgr": Family(MtgrConfig, Mtgr),
    "vista": Family(VistaConfig, Vista),
    "vista_causal": Family(CausalVistaConfig, CausalVista),
}
