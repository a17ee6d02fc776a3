"""What a person may set in the Launchpad, and how a wrong setting is told."""

from typing import Any

import dagster as dg
import pydantic


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
            refused = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or error.title} is {each['input']!r}, but {each['msg']}"
                for each in error.errors()
            )
            raise dg.Failure(f"{refused}: correct the run's configuration.", allow_retries=False) from error
