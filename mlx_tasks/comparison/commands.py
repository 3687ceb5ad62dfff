"""Command about several runs: compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser("compare", help="runs side by side: scores, what changed, and what is noise")
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="a workspace, run id, branch, commit, NAME/VERSION or MLflow run id"
    )
    command.add_argument("--html", type=Path, metavar="FILE", help="write the page as well")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from mlx_tasks.comparison.compare import compare
    from mlx_tasks.comparison.page import render_page
    from mlx_tasks.comparison.records import load_record
    from mlx_tasks.files import atomic_write_text
    from mlx_tasks.workspace.paths import Places

    places = Places.from_environment()
    records = [load_record(reference, places) for reference in arguments.runs]
    found = compare(records)
    if arguments.html:
        pictures = [record.picture(record.winner["candidate"]) for record in records]
        atomic_write_text(arguments.html, render_page(found, pictures))
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    _print(found)
    if arguments.html:
        print(f"page: {arguments.html.resolve()}")
    return 0


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mlx_tasks.comparison.page import short_name
    from mlx_tasks.report.charts import interval

    console = Console()
    names = [short_name(run["name"]) for run in found["runs"]]
    table = Table(title="Winners", title_justify="left")
    table.add_column("metric")
    for index, name in enumerate(names):
        table.add_column(name, justify="right", overflow="fold")
        if index:
            table.add_column("against the first", overflow="fold")
    table.add_row("candidate", *_spread([run["winner"]["candidate"] for run in found["runs"]]))
    table.add_row("network evaluations", *_spread([str(run["winner"]["nfe"]) for run in found["runs"]]))
    for row in found["metrics"]:
        cells: list[str] = []
        for index, cell in enumerate(row["runs"]):
            cells.append(interval(cell["score"]) if cell["score"] else "–")
            if index:
                cells.append(cell["word"] + (f" ({cell['why']})" if cell["why"] else ""))
        table.add_row(row["metric"].replace("_", " ") + (" ↑" if row["higher_is_better"] else " ↓"), *cells)
    console.print(table)
    for title, rows in (("Params that changed", found["params"]), ("Data that changed", found["data"])):
        changed = Table(title=title, title_justify="left")
        changed.add_column("key")
        for name in names:
            changed.add_column(name, overflow="fold")
        for row in rows:
            changed.add_row(row["key"], *("not kept" if value is None else str(value) for value in row["values"]))
        console.print(changed if rows else f"{title}: nothing.")


def _spread(values: list[str]) -> list[str]:
    """Values with an empty cell after each but the first."""
    return [values[0], *(part for value in values[1:] for part in (value, ""))]
