"""Command about sets of images: score."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILT_IN = "random_conv"


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser("score", help="score a folder of images against another: FID and company")
    command.add_argument("images", type=Path, help="folder of images, or .npy of (N, H, W, C) uint8")
    command.add_argument("--against", type=Path, required=True, help="the real ones: the same, or saved statistics")
    command.add_argument(
        "--extractor", default=BUILT_IN, help=f"{BUILT_IN}, or a published one; a wrong name lists them"
    )
    command.add_argument("--weights", type=Path, help="its weights (default: $MLX_TASKS_WEIGHTS, then the hub's cache)")
    command.add_argument("--resolution", type=int, help="squeeze images to this side first (pixels)")
    command.add_argument(
        "--count", type=int, help="take this many images of each set, drawn by the seed and spread over class folders"
    )
    command.add_argument("--batch", type=int, default=64, help="images extracted together")
    command.add_argument("--seed", type=int, default=0, help="of what --count draws, and of subsets")
    command.add_argument("--skip-broken", action="store_true", help="leave out files that do not decode, and name them")
    command.add_argument(
        "--save-statistics", type=Path, metavar="FOLDER", help="keep the real ones' mean and covariance"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(command=_score)


def _score(arguments: argparse.Namespace) -> int:
    from mlx_tasks import hardware
    from mlx_tasks.errors import DataError

    hardware.prepare()
    from mlx_tasks.metrics.image_files import ImageFiles
    from mlx_tasks.metrics.moments import Moments
    from mlx_tasks.metrics.score_sets import Extracted, extract, score_sets

    if arguments.batch < 1:
        raise DataError(f"--batch must be at least 1, got {arguments.batch}")
    options = (arguments.resolution, arguments.count, arguments.seed, arguments.skip_broken)
    generated = ImageFiles(arguments.images, *options)
    saved = (arguments.against / "moments.json").is_file()
    real = None if saved else ImageFiles(arguments.against, *options)
    extractor = _extractor(arguments.extractor, arguments.weights)
    with _progress(arguments.json) as tell:
        if real is None:
            held = Extracted(Moments.load(arguments.against), None)
        else:
            held = extract(real, extractor, arguments.batch, tell("against"))
        drawn = extract(generated, extractor, arguments.batch, tell("images"))
    if arguments.save_statistics:
        held.moments.save(arguments.save_statistics)
    scores, notes = score_sets(drawn, held, extractor.name.split("_")[0], arguments.seed)
    for one in (generated, real):
        notes += one.notes if one is not None else []
        if one is not None and one.broken:
            names = ", ".join(list(one.broken)[:5])
            notes.append(f"{len(one.broken)} files of {one.path} do not decode and were left out: {names}")
    told = {
        "scores": {name: estimate.as_dict() for name, estimate in scores.items()},
        "counts": {"images": drawn.moments.count, "against": held.moments.count},
        "extractor": extractor.identity,
        "notes": notes,
    }
    if arguments.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _print(told)
    return 0


def _extractor(name: str, weights: Path | None) -> Any:
    if name == BUILT_IN:
        from mlx_tasks.metrics.random_conv import RandomConvFeatures

        return RandomConvFeatures(3)
    from mlx_tasks.errors import DataError
    from mlx_tasks.metrics.extractors.registry import EXTRACTORS, make_extractor

    if name.startswith("lpips"):
        raise DataError(f"{name} scores pairs of images, not two sets: choose one of the others")
    if name not in EXTRACTORS:
        others = [known for known in EXTRACTORS if not known.startswith("lpips")]
        raise DataError(f"no extractor named {name!r}; there are: {', '.join([BUILT_IN, *others])}")
    return make_extractor(name, weights)


class _progress:
    """A bar on a terminal, a line now and then elsewhere, nothing beside JSON."""

    def __init__(self, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        from rich.console import Console

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=quiet or not self._terminal)

    def __enter__(self) -> Callable[[str], Callable[[int, int], None]]:
        self._bar.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _tell(self, name: str) -> Callable[[int, int], None]:
        task = self._bar.add_task(name, total=None)
        shown = [0]

        def tell(done: int, total: int) -> None:
            self._bar.update(task, completed=done, total=total)
            if not self._quiet and not self._terminal and (done >= total or done - shown[0] >= total / 10):
                shown[0] = done
                print(f"{name}: {done}/{total} images", file=sys.stderr, flush=True)

        return tell


def _print(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from mlx_tasks.report.svg import number

    counts = told["counts"]
    title = f"{counts['images']} images against {counts['against']}, by {told['extractor']['name']}"
    table = Table(title=title, title_justify="left")
    for name, side in (("score", "left"), ("value", "right"), ("95 % interval", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for name, one in told["scores"].items():
        span = "" if one["low"] is None else f"{number(one['low'])} to {number(one['high'])}"
        table.add_row(name.replace("_", " "), number(one["value"]), span)
    console = Console()
    console.print(table)
    for note in told["notes"]:
        console.print(f"note: {note}")
