"""The tree's rules that a linter does not know."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["orchestration", "assets", "feature_repo", "ray_jobs", "models"]
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
HEAVY = ["torch", "ray", "mlflow", "transformers", "feast", "great_expectations"]
MAX_LINES = 400
MAX_ASSET_LINES = 60


def test_loading_the_code_location_imports_nothing_heavy():
    code = (
        "import sys; from orchestration.definitions import defs; d = defs(); "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip().splitlines()[-1] == "[]"


def test_workspace_and_dg_name_the_same_code_location():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry["python_module"]["module_name"] == project["code_location_target_module"]
    assert entry["python_module"]["location_name"] == project["code_location_name"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_named_by_topic(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "helpers", "misc", "common"}


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "assets" in p.relative_to(ROOT).parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_assets_are_thin_pages(path):
    tree = ast.parse(path.read_text())
    assert "from __future__ import annotations" not in path.read_text()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            if any(d.startswith(("dg.asset(", "dg.multi_asset(")) for d in decorators):
                body = node.end_lineno - node.body[0].end_lineno  # the docstring is the page's text
                assert body <= MAX_ASSET_LINES, f"{node.name} has {body} lines"
                assert not [n for n in ast.walk(node) if isinstance(n, ast.ClassDef)], "no classes inside an asset"
        assert not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("dg.Definitions", "dg.definitions"))


def test_whatever_a_launchpad_takes_tells_its_errors_in_a_sentence():
    derived = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "dg.Config" in map(ast.unparse, node.bases)
    ]
    assert derived == ["assets/knobs.py"], "configurations derive from assets.knobs.Knobs"


def test_every_package_ships_its_own_modules_only():
    packages = {p.parent.relative_to(ROOT).parts[0] for p in SOURCES}
    assert packages == set(PACKAGES)
