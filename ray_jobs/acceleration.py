"""What makes training steps faster or smaller; imports no torch, since jobs that may not train carry it, too."""

from typing import Literal

import pydantic


class Acceleration(pydantic.BaseModel, frozen=True):
    """How steps are computed: nothing that is learned differs by more than rounding.

    Like the workers and their devices it is no part of a training's version: an interrupted training may go on with
    another, and the same training has the same name everywhere. Mixed precision differs by more: it is one of
    `TrainingOptions`, which are part of the version.
    """

    strategy: Literal["ddp", "fsdp"] = pydantic.Field(
        "ddp",
        description="What several workers share: `ddp`, gradients; `fsdp`, also weights and the optimiser's state, "
        "for networks whose training is too large for one device.",
    )
    compile: bool = pydantic.Field(False, description="Whether steps are compiled by `torch.compile`.")
