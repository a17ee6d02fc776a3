"""Twins of MLflow: a database and a folder on this machine, or a tracking server."""

from pathlib import Path
from typing import Any

import pydantic

from assets.resources import Tracking

SQLITE = "sqlite:///"


def _experiment(mlflow: Any, name: str, artifact_location: str | None) -> None:
    """Makes the experiment ``name`` if need be and sets it. Two steps may do so at once."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    if mlflow.get_experiment_by_name(name) is None:
        try:
            mlflow.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
    mlflow.set_experiment(name)


class EmbeddedTracking(Tracking):
    """MLflow on an SQLite database and a folder of artifacts; no server runs."""

    tracking_uri: str = pydantic.Field(description="`sqlite:////path/to/mlflow.db`.")
    artifact_root: str = pydantic.Field(description="Folder of the artifacts, as a path or `file://` URL.")
    ui: str = pydantic.Field("http://127.0.0.1:5000", description="Address of the MLflow UI, for links.")

    def connect(self, experiment: str) -> Any:
        """See `Tracking.connect`."""
        import mlflow

        Path(self.tracking_uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)
        root = Path(self.artifact_root.removeprefix("file://")).absolute()
        # Without a location MLflow would put artifacts below the working directory.
        _experiment(mlflow, experiment, f"{root.as_uri()}/{experiment}")
        return mlflow

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """See `Tracking.run_url`."""
        return f"{self.ui.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


class ServerTracking(Tracking):
    """MLflow on a tracking server, or straight on a shared database with shared artifact storage."""

    tracking_uri: str = pydantic.Field(description="`http://mlflow:5000`, or `postgresql+psycopg://...`.")
    artifact_root: str = pydantic.Field(
        "", description="`s3://bucket/prefix` of new experiments' artifacts; empty leaves it to the server."
    )
    ui: str = pydantic.Field("", description="Address of the MLflow UI; the server itself by default.")

    def connect(self, experiment: str) -> Any:
        """See `Tracking.connect`."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)
        _experiment(
            mlflow, experiment, f"{self.artifact_root.rstrip('/')}/{experiment}" if self.artifact_root else None
        )
        return mlflow

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """See `Tracking.run_url`."""
        return f"{(self.ui or self.tracking_uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def tracking_twin(tracking_uri: str, artifact_root: str, ui: str, **told: str) -> Tracking:
    """The twin for a tracking URI: embedded for SQLite, else a server.

    Args:
        tracking_uri: MLflow tracking URI.
        artifact_root: Artifact root of new experiments. A local folder means nothing to an HTTP server, which then
            keeps artifacts where it was told to.
        ui: Address of the UI.
        **told: What every run's tags tell: image digest and dataset licence.
    """
    if tracking_uri.startswith(SQLITE):
        return EmbeddedTracking(tracking_uri=tracking_uri, artifact_root=artifact_root, ui=ui, **told)
    local = artifact_root.startswith(("file://", "/"))
    return ServerTracking(
        tracking_uri=tracking_uri,
        ui=ui,
        **told,
        artifact_root="" if tracking_uri.startswith("http") and local else artifact_root,
    )
