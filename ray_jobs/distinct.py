"""Values of which each may be named once, for the configs of jobs."""

from typing import Annotated, TypeVar

import pydantic

Value = TypeVar("Value")


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Refuses what is named twice: two trainings of one name would count as two."""
    if twice := [value for at, value in enumerate(values) if value in values[:at]]:
        raise ValueError(f"{twice[0]} is there twice: name each once.")
    return values


Distinct = Annotated[tuple[Value, ...], pydantic.AfterValidator(_distinct)]
