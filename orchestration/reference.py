"""Reference pages that are written from the code: `python -m orchestration.reference` writes them again."""

import importlib
import pkgutil
from pathlib import Path

import ray_jobs.tables
from orchestration.settings import Settings
from ray_jobs.warehouse import Table

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reference"


def all_tables() -> list[Table]:
    """Every table contract of the platform, by name."""
    found = {}
    for module in pkgutil.iter_modules(ray_jobs.tables.__path__):
        for value in vars(importlib.import_module(f"ray_jobs.tables.{module.name}")).values():
            if isinstance(value, Table):
                found[value.name] = value
    return [found[name] for name in sorted(found)]


def configuration_page() -> str:
    """The page of all settings."""
    lines = [
        "# Configuration",
        "",
        "One settings object reads these environment variables (or a `.env` file). Every default is the embedded one.",
        "Written from `orchestration/settings.py` by `python -m orchestration.reference`.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None or str(default) in ("", "**********", "{}") else f"`{default}`"
        lines.append(f"| `BELVEDERE_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def tables_page() -> str:
    """The page of all tables."""
    lines = [
        "# Tables",
        "",
        "Every table is a Delta Lake table at `<warehouse>/<stage>/<table>`. Times are UTC, in microseconds.",
        "Written from `ray_jobs/tables/` by `python -m orchestration.reference`.",
    ]
    for table in all_tables():
        lines += [
            "",
            f"## {table.name}",
            "",
            f"One row: {table.grain}. Key: `{', '.join(table.primary_key)}`."
            + (f" Files by: `{', '.join(table.partition_by)}`." if table.partition_by else ""),
            "",
            "| column | type | null | meaning |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{c.name}`{' (personal)' if c.pii else ''} | `{c.type}` | {'yes' if c.nullable else ''} | "
            f"{c.description.replace('|', '/')} |"
            for c in table.columns
        ]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Every written page with its text."""
    return {PAGES / "configuration.md": configuration_page(), PAGES / "tables.md": tables_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
