"""The dataset: any layout that has a reader, in a folder or on object storage."""

from typing import TYPE_CHECKING

import pydantic

from assets.resources import Dataset

if TYPE_CHECKING:
    from assets.interactions.readers.base import Reader


class ConfiguredDataset(Dataset):
    """A dataset named by layout and location, the same for a laptop's folder and for production's bucket."""

    source: str = pydantic.Field(description="Layout and location, e.g. `contract:/data/shop`.")

    def reader(self) -> "Reader":
        """See `Dataset.reader`."""
        from assets.interactions.readers.base import open_reader

        return open_reader(self.source)
