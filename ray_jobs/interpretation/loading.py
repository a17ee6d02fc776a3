"""Loads the interpretation engine that a config names."""

from ray_jobs.interpretation.interpreter import InterpretationParameters, Interpreter, InterpreterConfig
from ray_jobs.interpretation.prompting import interpretation_prompt


def load_interpreter(config: InterpreterConfig, prompt: str, parameters: InterpretationParameters) -> Interpreter:
    """Loads the interpreter that ``config`` names.

    Args:
        config: Kind and models.
        prompt: Name of a file in `ray_jobs/prompts`.
        parameters: How records are decoded.

    Raises:
        EngineSetupError: If there is no such model, or it cannot be used as it is configured.
    """
    loaded = interpretation_prompt(prompt)
    if config.kind == "endpoint":
        from ray_jobs.interpretation.endpoint_interpreter import EndpointInterpreter

        return EndpointInterpreter(config, loaded, parameters)
    if config.kind == "vision":
        from ray_jobs.interpretation.vision_interpreter import VisionInterpreter

        return VisionInterpreter(config, loaded, parameters)
    from ray_jobs.interpretation.evidence_interpreter import EvidenceInterpreter

    return EvidenceInterpreter(config, loaded, parameters)
