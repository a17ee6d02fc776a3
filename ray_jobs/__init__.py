"""Programs that Ray runs. Each has a frozen config, ``run(config) -> result`` and a thin ``main`` that speaks Pipes."""
