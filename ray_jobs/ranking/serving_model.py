"""The ranker as MLflow serves it: a pyfunc that is loaded from this very code, not from a pickle.

MLflow runs this file when it loads the model (models from code). The folder ``ranker`` among its artifacts holds what
`ray_jobs.ranking.files` wrote; columns are those of the ranker's FeatureService under the names of the training set.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc import PythonModel, PythonModelContext

from models.ranking.content import SUMMARY, readable_summaries
from models.ranking.scoring import DLRM_KIND
from ray_jobs.counts import Counts
from ray_jobs.ranking.data import REQUEST_TYPES, request_columns
from ray_jobs.ranking.files import read_ranker

RANKER = "ranker"
TYPES = REQUEST_TYPES


def feature_table(rows: pd.DataFrame, inputs: tuple[str, ...]) -> pa.Table:
    """Rows of a request as the training set has them. Missing columns and values are nulls.

    Args:
        rows: The request.
        inputs: Extra inputs of the ranker.
    """
    columns = {}
    for name in request_columns(DLRM_KIND, inputs):
        values = list(rows[name]) if name in rows.columns else [None] * len(rows)
        # A float NaN is how pandas says null in any column; MLflow knows no missing bytes, so they come empty.
        absent = [v is None or (isinstance(v, float) and v != v) or (isinstance(v, bytes) and not v) for v in values]
        columns[name] = pa.array(
            [None if gone else v for v, gone in zip(values, absent, strict=True)],
            type=pa.float64() if pa.types.is_integer(TYPES[name]) else TYPES[name],
        )
    return pa.table(columns)


class RankerModel(PythonModel):
    """Scores feature rows: the calibrated probability of a like. Unseen users and items are allowed.

    During a rollout it reads the summaries of its own version, wherever they are. ``counts`` says of how many rows they
    were the ``newest`` or ``held`` ones, and of how many they were ``missing``: these are scored without.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the ranker, once."""
        self.ranker = read_ranker(Path(context.artifacts[RANKER]))
        p = self.ranker.preprocessing
        self.counts = Counts()
        self.inputs = (("tokens",) if p.num_tokens else ()) + (("summary",) if p.summary_shape[0] else ())

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Scores rows; see the model's signature."""
        rows = feature_table(model_input, self.inputs)
        if "summary" in self.inputs:
            wanted = self.ranker.preprocessing.content_versions.get(SUMMARY.version, "")
            rows, outcomes = readable_summaries(rows, wanted)
            self.counts.add(**outcomes)
        return pd.DataFrame({"score": self.ranker.score(rows)})


mlflow.models.set_model(RankerModel())
