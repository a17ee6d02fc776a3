"""The pages say what the code says."""

import re
from pathlib import Path

from orchestration.definitions import defs
from orchestration.reference import pages
from orchestration.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_reference_pages_are_those_of_the_code():
    for path, text in pages().items():
        assert path.exists() and path.read_text() == text, (
            f"{path.name} is old: run `python -m orchestration.reference`"
        )


def test_every_link_between_pages_leads_somewhere():
    for page in WRITTEN:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_every_variable_in_the_pages_is_a_setting():
    known = {f"BELVEDERE_{name.upper()}" for name in Settings.model_fields}
    for page in WRITTEN:
        named = set(re.findall(r"BELVEDERE_[A-Z_]*[A-Z]", page.read_text()))
        assert named <= known, f"{page.relative_to(ROOT)}: {named - known}"


def test_every_production_setting_is_told_where_production_is_told():
    page = (ROOT / "docs" / "how-to" / "go-to-production.md").read_text()
    for name, field in Settings.model_fields.items():
        if field.default == "" and name not in ("dataset", "runbook_base"):
            assert f"BELVEDERE_{name.upper()}" in page, name


def test_every_run_config_in_the_pages_is_one_that_a_job_takes():
    import dagster as dg
    import yaml

    jobs = {job.name: job for job in defs().resolve_all_job_defs()}
    found = 0
    for page in WRITTEN:
        for text in re.findall(r"^ {4}(ops: \{.*\})$", page.read_text(), re.M):
            job = jobs[page.stem]
            assert dg.validate_run_config(job, yaml.safe_load(text)), f"{page.name}: {text}"
            found += 1
    assert found >= 3
