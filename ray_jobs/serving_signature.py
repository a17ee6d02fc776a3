"""What a request to a ranker looks like: MLflow signature, example rows and pinned requirements."""

from importlib.metadata import version
from typing import Any

import pandas as pd
import pyarrow as pa

from ray_jobs.ranker_data import feature_columns, of_split, read_examples
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.warehouse import Warehouse

EXAMPLES = 8


def signature(inputs: tuple[str, ...]) -> Any:
    """Typed columns of a request, all but the ids optional, and of the answer.

    Numbers are doubles, because a missing integer has no other form in a data frame.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    columns: list[Any] = []
    for name in feature_columns(inputs):
        kind = next(c.type for c in TRAINING_SET.columns if c.name == name)
        columns.append(ColSpec(_mlflow_type(kind, Array, DataType), name, required=name in ("user_id", "item_id")))
    return ModelSignature(inputs=Schema(columns), outputs=Schema([ColSpec(DataType.double, "score")]))


def _mlflow_type(kind: pa.DataType, array: Any, types: Any) -> Any:
    if pa.types.is_list(kind):
        if pa.types.is_integer(kind.value_type):
            return array(types.long)
        return array(types.string if pa.types.is_string(kind.value_type) else types.double)
    if pa.types.is_binary(kind):
        return types.binary
    return types.string if pa.types.is_string(kind) else types.double


def example_rows(warehouse: Warehouse, inputs: tuple[str, ...], predictions: pa.Table) -> pd.DataFrame:
    """A few rows of the test split as a request has them, with their ``example_id``."""
    data = of_split(read_examples(warehouse, inputs), "test").slice(0, EXAMPLES)
    rows = {"example_id": data["example_id"].to_pylist()}
    for name in feature_columns(inputs):
        values = data[name].to_pylist()
        if pa.types.is_list(data[name].type):
            values = [v or [] for v in values]
        elif pa.types.is_binary(data[name].type):
            values = [v or b"" for v in values]
        elif not pa.types.is_string(data[name].type):
            values = [float("nan") if v is None else float(v) for v in values]
        rows[name] = values
    return pd.DataFrame(rows)


def pinned(packages: tuple[str, ...]) -> list[str]:
    """Requirements with the installed versions; a local build tag (``+cpu``) is no public version."""
    return [f"{name}=={version(name).split('+')[0]}" for name in packages]
