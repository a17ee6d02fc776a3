"""What a request to a ranker looks like: MLflow signature, example rows and pinned requirements."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd
import pyarrow as pa

from ray_jobs.ranking.data import REQUEST_TYPES, SERVED_REFS, read_examples, request_columns
from ray_jobs.warehouse import Warehouse

USER = "user_id"
EXAMPLES = 8
TYPES = REQUEST_TYPES


def signature(kind: str, inputs: tuple[str, ...]) -> Any:
    """Typed columns of a request, all but the ids optional, and of the answer.

    Numbers are doubles, because a missing integer has no other form in a data frame.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    columns: list[Any] = []
    for name in request_columns(kind, inputs):
        columns.append(
            ColSpec(_mlflow_type(TYPES[name], Array, DataType), name, required=name in ("user_id", "item_id"))
        )
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec(DataType.double, "score")]))


def _mlflow_type(kind: pa.DataType, array: Any, types: Any) -> Any:
    if pa.types.is_list(kind):
        if pa.types.is_integer(kind.value_type):
            return array(types.long)
        return array(types.string if pa.types.is_string(kind.value_type) else types.double)
    if pa.types.is_binary(kind):
        return types.binary
    return types.string if pa.types.is_string(kind) else types.double


def example_rows(warehouse: Warehouse, kind: str, inputs: tuple[str, ...]) -> pd.DataFrame:
    """A few rows of the test split as a request has them, with their ``example_id``."""
    data = read_examples(warehouse, inputs, splits=("test",)).slice(0, EXAMPLES)
    return pd.DataFrame(
        {"example_id": data["example_id"].to_pylist()}
        | {
            name: _asked(name, data[name].to_pylist() if name in data.column_names else [None] * data.num_rows)
            for name in request_columns(kind, inputs)
        }
    )


def without_users(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with users numbered instead of named: beside a model in MLflow no user could be forgotten."""
    numbered = {user: f"user {n}" for n, user in enumerate(rows[USER].unique(), start=1)}
    return rows.assign(**{USER: rows[USER].map(numbered)})


def request_of(served: Mapping[str, list[Any]], kind: str, inputs: tuple[str, ...]) -> pd.DataFrame:
    """What a registered ranker is asked, out of the online features of its service.

    Args:
        served: What Feast's ``get_online_features(..., full_feature_names=True).to_dict()`` gives.
        kind: Kind of the ranker.
        inputs: Its extra inputs.
    """
    return pd.DataFrame(
        {
            name: _asked(name, served[SERVED_REFS.get(name, name).replace(":", "__")])
            for name in request_columns(kind, inputs)
        }
    )


def _asked(name: str, values: list[Any]) -> list[Any]:
    """Values in the types of `signature`, which know no missing value but a number's."""
    kind = TYPES[name]
    if pa.types.is_list(kind):
        return [v or [] for v in values]
    if pa.types.is_binary(kind):
        return [v or b"" for v in values]
    if pa.types.is_string(kind):
        return [v or "" for v in values]
    return [float("nan") if v is None else float(v) for v in values]


def pinned(packages: tuple[str, ...]) -> list[str]:
    """Requirements with the installed versions; a local build tag (``+cpu``) is no public version."""
    return [f"{name}=={version(name).split('+')[0]}" for name in packages]
