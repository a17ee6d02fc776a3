"""What a person may set in the Launchpad, and how a wrong setting is told."""

from typing import Any

import dagster as dg
import pydantic

from assets.failures import refused


class Knobs(dg.Config):
    """Configuration of an asset or an op.

    Dagster looks at types before a run starts, but at bounds only in the step, where an error of pydantic's would be
    tried again like a lost connection, and its cause be lost under "Exceeded max_retries".

    Raises:
        dagster.Failure: If a value is refused: names the knob, the value and what it should be, and is not retried.
    """

    def __init__(self, **given: Any):
        try:
            super().__init__(**given)
        except pydantic.ValidationError as error:
            # Values are told: Dagster shows a run's configuration beside it anyway.
            found = refused(error, "{name} is {value}, but {why}")
            raise dg.Failure(f"{found}: correct the run's configuration.", allow_retries=False) from error
