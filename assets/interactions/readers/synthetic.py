"""A dataset that the platform makes itself, behind the contract's reader."""

from urllib.parse import parse_qsl

import pydantic

from assets.interactions.readers.base import DatasetError
from assets.interactions.readers.contract import ContractReader
from assets.interactions.synthetic import SyntheticConfig, write_synthetic


class SyntheticReader(ContractReader):
    """``synthetic:<folder>?users=..&items=..&events=..&days=..&seed=..&images=true&implicit=false&repeats=false``.

    The dataset is written into the folder when it is not there yet with these very parameters.
    """

    layout = "synthetic"

    def __init__(self, location: str):
        folder, _, query = location.partition("?")
        try:
            config = SyntheticConfig.model_validate(dict(parse_qsl(query, strict_parsing=bool(query))))
        except (pydantic.ValidationError, ValueError) as error:
            names = ", ".join(SyntheticConfig.model_fields)
            raise DatasetError(
                f"The options `{query}` of the synthetic dataset cannot be read: write "
                f"`name=value&...` with whole numbers or true/false and names out of {names}."
            ) from error
        write_synthetic(folder, config)
        super().__init__(folder)
        self.source = f"{self.layout}:{location}"
