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


class Variant(NamedTuple):
    """A family with other arguments, which stands beside it in a comparison.

    Attributes:
        family: Name out of `FAMILIES`.
        arguments: Constructor arguments.
    """

    family: str
    arguments: dict[str, Any]


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

VARIANTS = {
    "sim_hard": Variant("sim", {"search": "hard"}),
    "vista_softmax": Variant("vista", {"attention": "softmax"}),
    "vista_no_reconstruction": Variant("vista", {"reconstruction_weight": 0.0}),
}


def variant_of(name: str) -> Variant:
    """The family that a name stands for, and what is peculiar to it.

    Raises:
        ValueError: If there is no such model.
    """
    if name in FAMILIES:
        return Variant(name, {})
    if name not in VARIANTS:
        raise ValueError(f"There is no model {name!r} of long histories: give one of {', '.join(KNOWN)}.")
    return VARIANTS[name]


KNOWN = (*FAMILIES, *VARIANTS)


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Refuses what the constructor of a model would refuse once the data are read.

    Raises:
        ValueError: If there is no such model, or its config has no such argument, or not such a value.
    """
    family, own = variant_of(name)
    sizes = dict.fromkeys(("num_items", "num_codes", "num_actions", "num_values"), 1)
    FAMILIES[family].config(**sizes | own | arguments)
