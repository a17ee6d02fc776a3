"""Where requests read personas and workers write them: the interface, and how a job finds what stands behind it.

Jobs do not know the feature store. Configuration names what opens it, as Feast's own configuration names its stores.
"""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import pydantic

from models.personas.freshness import Event, ServedPersona


class PersonaStore(Protocol):
    """The online store of personas."""

    def look_up(self, user_id: str, most_events: int) -> tuple[ServedPersona | None, list[Event]]:
        """What a request needs: the user's persona, and the newest events, newest first."""

    def read(self, user_ids: Sequence[str]) -> dict[str, ServedPersona]:
        """The personas of some users; who has none is left out."""

    def write(self, personas: Sequence[ServedPersona]) -> None:
        """Replaces the personas of some users."""

    def remove(self, user_ids: Iterable[str]) -> None:
        """Removes users."""


class StoreConfig(pydantic.BaseModel, frozen=True):
    """How a job opens the store. JSON-serialisable: it travels in job configs."""

    factory: str = pydantic.Field(description="`module:function` that opens it.")
    options: dict[str, Any] = pydantic.Field(description="The function's arguments.", repr=False)

    def open(self) -> PersonaStore:
        """Opens the store."""
        module, _, name = self.factory.partition(":")
        return cast(PersonaStore, getattr(importlib.import_module(module), name)(**self.options))
