"""Command about kinds of images: domains learn, domains show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser("domains", help="sampler settings learned from runs, by kind of image")
    parts = command.add_subparsers(required=True, metavar="learn | show")
    learn = parts.add_parser("learn", help="take what finished runs found into the book, as its next version")
    learn.add_argument("workspaces", type=Path, nargs="+", metavar="WORKSPACE", help="a run's folder")
    show = parts.add_parser("show", help="the book's entries; with a dataset, the nearest to it first")
    show.add_argument("--dataset", type=Path, metavar="FOLDER", help="a run's work/dataset")
    for part, action in ((learn, _learn), (show, _show)):
        part.add_argument("--book", type=Path, metavar="FILE", help="default: include/sampler_settings.json")
        part.set_defaults(command=action)


def _learn(arguments: argparse.Namespace) -> int:
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.domains.book import BOOK, SettingsBook, entries_of_run

    path = arguments.book or BOOK
    book = SettingsBook.load(path)
    entries = [entry for workspace in arguments.workspaces for entry in entries_of_run(workspace)]
    changed = book.with_entries(entries)
    if changed is book:
        print(f"domains: nothing new; {path} stays at version {book.version}")
        return 0
    changed.save(path)
    print(f"domains: {len(entries)} entries taken into {path}, now version {changed.version}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from mlx_tasks.domains.book import BOOK, SettingsBook
    from mlx_tasks.errors import DataError
    from mlx_tasks.files import read_json

    book = SettingsBook.load(arguments.book or BOOK)
    found: list[tuple[float | None, Any]] = [(None, entry) for entry in book.entries]
    if arguments.dataset is not None:
        try:
            statistics = read_json(arguments.dataset / "summary.json")["domain"]["statistics"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{arguments.dataset} holds no dataset of the validate stage ({error!r})") from None
        found = list(book.nearest(statistics))
    table = Table(title=f"Sampler settings, version {book.version}", title_justify="left")
    for head in ("images", "pixels", "NFE", "sigma", "error", "even grid", "distance"):
        table.add_column(head, justify="left" if head == "images" else "right")
    for distance, entry in found:
        ends = f"{entry.sigmas[0]:.2g} to {entry.sigmas[-1]:.2g}"
        away = "" if distance is None else f"{distance:.2f}"
        numbers = (f"{entry.error:.4f}", f"{entry.uniform_error:.4f}", away)
        table.add_row(entry.domain, str(entry.resolution), str(entry.budget), ends, *numbers)
    Console().print(table)
    return 0
