"""Aliases of registered models: what serves, and what served before it."""

from typing import Any


def serve(client: Any, model: str, alias: str, previous: str, number: str) -> None:
    """Points an alias to a version and another one to the version that stood there; moves nothing if it stands.

    Args:
        client: `mlflow.MlflowClient`.
        model: Registered model.
        alias: The alias that readers follow.
        previous: The alias of what they followed before.
        number: Version of the model.
    """
    standing = client.get_registered_model(model).aliases
    if str(standing.get(alias)) == number:
        return
    if alias in standing:
        client.set_registered_model_alias(model, previous, standing[alias])
    client.set_registered_model_alias(model, alias, number)
