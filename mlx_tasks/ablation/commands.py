"""Command about the chain's parts: ablate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mlx_tasks.params import parse_override


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser("ablate", help="switch one part of the chain off at a time and say what that costs")
    command.add_argument("--preset", help="include/presets/NAME.yaml (default: params.yaml as it stands)")
    command.add_argument("--parts", default="", help="comma-separated (default: all; a wrong name lists them)")
    command.add_argument("--seeds", type=int, default=1, help="training seeds; a claim about training needs 3 or more")
    command.add_argument("--samples", type=int, default=256, help="images a side")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a dotted key and its value")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the table as a page too")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(command=_ablate)


def _ablate(arguments: argparse.Namespace) -> int:
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.ablation.parts import find_parts
    from mlx_tasks.ablation.run import Ablation
    from mlx_tasks.errors import DataError
    from mlx_tasks.files import atomic_write_text
    from mlx_tasks.workspace.paths import Places

    if arguments.seeds < 1 or arguments.samples < 10:
        raise DataError(f"at least 1 seed and 10 samples are needed, got {arguments.seeds} and {arguments.samples}")
    parts = find_parts([name.strip() for name in arguments.parts.split(",") if name.strip()])

    def tell(text: str) -> None:
        if not arguments.json:
            print(f"ablate: {text}", flush=True)

    overrides = dict(parse_override(text) for text in arguments.set)
    ablation = Ablation(Places.from_environment(), arguments.preset, overrides, arguments.samples, tell)
    first = ablation.config.seed
    results = list(ablation.results(parts, list(range(first, first + arguments.seeds))))
    if arguments.html:
        atomic_write_text(arguments.html, _page(results))
    if arguments.json:
        print(json.dumps([result.as_dict() for result in results], indent=2))
    else:
        _print(results)
    return 0


HEADS = ("part switched off", "with it", "without it", "cost (95 %)", "so the part")


def rows(results: list[Any]) -> list[tuple[str, ...]]:
    """The table's cells as text."""
    from mlx_tasks.report.svg import number

    words = {"worse": "helps", "better": "hurts", "inside the noise": "makes no difference that this can see"}
    told = []
    for result in results:
        if result.cost is None:
            told.append((f"{result.part}: {result.summary}", "–", "–", "–", result.why_not))
            continue
        cost = f"{result.cost.value:+.4f} ({result.cost.low:+.4f} to {result.cost.high:+.4f})"
        values = (number(result.whole), number(result.without), cost, words[result.cost.verdict])
        told.append((f"{result.part}: {result.summary}", *values))
    return told


def _print(results: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_title(results), title_justify="left")
    for head in HEADS:
        table.add_column(head)
    for row in rows(results):
        table.add_row(*row)
    Console().print(table)


def _title(results: list[Any]) -> str:
    done = next((result for result in results if result.cost), None)
    if done is None:
        return "Ablation"
    kind = f"{done.seeds} training seeds" if done.seeds > 1 else "one training seed; the interval is over images alone"
    return f"Frechet distance of {done.samples} images, {kind}"


def _page(results: list[Any]) -> str:
    from html import escape
    from importlib.resources import files

    style = (files("mlx_tasks.report") / "style.css").read_text(encoding="utf-8")
    head = "".join(f'<th class="text">{escape(name)}</th>' for name in HEADS)
    body = "".join(
        "<tr>" + "".join(f'<td class="text wrap">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows(results)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Ablation</title><style>{style}</style></head><body><main><h1>Ablation</h1>"
        f"<p>{escape(_title(results))}. Lower is better; a cost above zero means that the part helps.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div></main></body></html>'
    )
