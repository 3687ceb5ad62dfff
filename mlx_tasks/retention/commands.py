"""Command about what runs leave behind: clean."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_tasks.retention.plan import Area


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser(
        "clean", help="what old runs left behind, and with --yes it goes; registered ones stay"
    )
    command.add_argument("--older-than", default="30d", metavar="AGE", help="days, hours or minutes: 30d, 12h, 90m")
    command.add_argument("--yes", action="store_true", help="take it away (default: only tell)")
    command.add_argument("--dry-run", action="store_true", help="only tell, whatever else is said")
    command.add_argument("--names", action="store_true", help="name every thing that goes")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--env", type=Path, help="a file of settings, such as worker.env")
    command.set_defaults(command=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    from mlx_tasks.environment_file import take_env_file
    from mlx_tasks.retention.clean import clean
    from mlx_tasks.retention.plan import seconds
    from mlx_tasks.workspace.paths import Places

    if arguments.env:
        take_env_file(arguments.env)
    remove = arguments.yes and not arguments.dry_run

    def say(text: str) -> None:
        if not arguments.json:
            print(f"clean: {text}", flush=True)

    areas = clean(Places.from_environment(), seconds(arguments.older_than), remove, say)
    if arguments.json:
        print(json.dumps([_told(area) for area in areas], indent=2))
        return 0
    _print(areas, remove)
    if arguments.names:
        for area in areas:
            for item in area.goes:
                print(f"{area.title}: {item.name}")
    for note in (area.note for area in areas if area.note and area.goes):
        print(f"clean: {note}")
    if not remove and any(area.goes for area in areas):
        print("clean: nothing was removed; --yes removes what the table says goes")
    return 0


def _told(area: Area) -> dict[str, Any]:
    names = [item.name for item in area.goes]
    return {"what": area.title, "goes": names, "bytes": area.size, "stays": dict(area.stays), "note": area.note}


def _print(areas: list[Area], removed: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Gone" if removed else "What would go", title_justify="left")
    for head in ("what", "gone" if removed else "goes", "space", "stays"):
        table.add_column(head, justify="right" if head in ("gone", "goes", "space") else "left")
    for area in areas:
        stays = "; ".join(f"{count} {why}" for why, count in sorted(area.stays.items()))
        table.add_row(area.title, str(len(area.goes)), _space(area.size), stays)
    table.add_section()
    table.add_row("all", str(sum(len(area.goes) for area in areas)), _space(sum(area.size for area in areas)), "")
    Console().print(table)


def _space(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size else ""
