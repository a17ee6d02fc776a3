"""What every materialization tells the Dagster UI, in one place."""

import resource
import time
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa

from assets.features.plots import shares
from assets.memory import give_back_memory
from ray_jobs.warehouse import Table

SAMPLE_ROWS = 5
PROFILED_ROWS = 10_000
MAX_CELL = 60


def definition_metadata(table: Table) -> dict[str, Any]:
    """Metadata of an asset that owns ``table``: its name, columns and grain."""
    columns = [
        dg.TableColumn(
            c.name,
            str(c.type),
            c.description,
            dg.TableColumnConstraints(nullable=c.nullable),
            tags={"pii": ""} if c.pii else None,
        )
        for c in table.columns
    ]
    return {
        "dagster/table_name": table.name,
        "dagster/column_schema": dg.TableSchema(columns),
        "grain": table.grain,
        "primary_key": ", ".join(table.primary_key),
    }


def sample_markdown(table: Table, data: pa.Table) -> str:
    """A Markdown table of the first rows, with what identifies a person masked and long cells cut."""
    masked = {c.name for c in table.columns if c.pii}
    head = pl.from_arrow(data.slice(0, SAMPLE_ROWS))
    assert isinstance(head, pl.DataFrame)
    lines = ["| " + " | ".join(head.columns) + " |", "|" + "---|" * len(head.columns)]
    for row in head.iter_rows(named=True):
        cells = [
            "•••" if n in masked else str(v)[:MAX_CELL].replace("|", "/").replace("\n", " ") for n, v in row.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def profile_markdown(data: pa.Table) -> str:
    """A plot of how often each column has a value."""
    filled = {name: 1 - data[name].null_count / data.num_rows for name in data.column_names}
    return shares(filled, f"share of {data.num_rows:,} rows that have a value")


def _has_plot(metadata: dict[str, Any]) -> bool:
    texts = (getattr(value, "md_str", value) for value in metadata.values())
    return any(isinstance(text, str) and "data:image/png" in text for text in texts)


def shown_before(version: str) -> dict[str, Any]:
    """Samples, plots and links of the running asset's last materialization, if it has this very version.

    The UI shows the newest materialization only, and one that found nothing to do has nothing of its own to show.
    """
    context = dg.AssetExecutionContext.get()
    latest = context.instance.get_latest_materialization_event(context.asset_key)
    said = latest.asset_materialization.metadata if latest and latest.asset_materialization else {}
    if "version" not in said or said["version"].value != version:
        return {}
    return {n: v for n, v in said.items() if isinstance(v, dg.MarkdownMetadataValue | dg.UrlMetadataValue)}


class Report:
    """Collects what one materialization says about itself.

    Make it first, so that its clock covers the whole step, and what the steps before it have freed is given back::

        report = Report(ITEM_CAPTIONS)
        ...
        return report.result(version=version, rows=data, committed=written.committed, metadata={...})
    """

    def __init__(self, table: Table):
        self.table = table
        self.started = time.monotonic()
        give_back_memory()

    def result(
        self,
        *,
        version: str,
        data: pa.Table | None = None,
        num_rows: int | None = None,
        committed: bool,
        metadata: dict[str, Any] | None = None,
        check_results: list[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult:
        """The materialization.

        Args:
            version: Data version: the table's version.
            data: The rows written, for sample and profile; None when they are not at hand: the first ones are read.
            num_rows: Row count when ``data`` is None.
            committed: Whether a table commit was made.
            metadata: More numbers and links; snake_case keys. Use ``llm_calls`` and ``training_runs`` for cost.
            check_results: Results of checks that the asset declares itself.
        """
        said: dict[str, Any] = {
            "dagster/row_count": data.num_rows if data is not None else int(num_rows or 0),
            "table_commits": int(committed),
            "unchanged": not committed,
            "seconds": round(time.monotonic() - self.started, 3),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "version": version,
        }
        if data is not None:
            said["bytes"] = data.nbytes
            said["nulls"] = sum(column.null_count for column in data.columns)
        said |= metadata or {}
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version), metadata=self._shown(data, said) | said, check_results=check_results
        )

    def _shown(self, data: pa.Table | None, said: dict[str, Any]) -> dict[str, Any]:
        """A sample and a plot, as far as the asset shows none of its own."""
        if "sample" in said and _has_plot(said):
            return {}
        if data is None:
            tables = dg.AssetExecutionContext.get().resources.tables
            data = next(tables.warehouse().batches(self.table, num_rows=PROFILED_ROWS), None)
        if data is None or not data.num_rows:
            return {}
        shown = {"sample": dg.MetadataValue.md(sample_markdown(self.table, data))}
        return shown if _has_plot(said) else shown | {"profile": dg.MetadataValue.md(profile_markdown(data))}

    def unchanged(
        self,
        tables: Any,
        version: str,
        metadata: dict[str, Any] | None = None,
        check_results: list[dg.AssetCheckResult] | None = None,
    ) -> dg.MaterializeResult:
        """The materialization of a table that already holds ``version``: nothing was computed or written."""
        return self.result(
            version=version,
            num_rows=tables.warehouse().num_rows(self.table),
            committed=False,
            metadata=shown_before(version) | (metadata or {}),
            check_results=check_results,
        )
