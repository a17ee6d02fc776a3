"""How a job of `ray_jobs/` starts when Ray runs it as a submitted job: config in, result out, over Dagster Pipes."""

from types import ModuleType

RESULT = "result"
TRANSIENT = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")


def name_causes() -> None:
    """Has Ray Data raise what a batch raised; its own wrapper would lose the error's type on the way back."""
    import ray.data

    ray.data.DataContext.get_current().raise_original_map_exception = True


def serve_pipes(module: ModuleType) -> None:
    """Runs ``module.run(module.Config)`` inside a Pipes session and reports its `Result`, or its first cause.

    Args:
        module: A job module with `Config` and `Result` (pydantic models) and `run`.
    """
    import logging

    import ray
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
        ray.init(log_to_driver=True, namespace="belvedere")
        name_causes()
        try:
            result = module.run(module.Config.model_validate(pipes.get_extra("config")))
        except Exception as error:
            # Told as a message, because the Dagster side would otherwise only see that the job ended with code 1.
            cause = getattr(error, "cause", None) or error
            logging.exception("%s failed", module.__file__)
            transient = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
            pipes.report_custom_message(
                {
                    RESULT: {
                        "error": " ".join([f"{type(cause).__name__}:", *str(cause).strip().splitlines()[:1]]),
                        "transient": transient or type(cause).__name__ in TRANSIENT,
                    }
                }
            )
            return
        pipes.report_custom_message({RESULT: {"value": result.model_dump(mode="json")}})
