"""Commands about a bundle's sampler and what it costs here: optimize, device-cost."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    command = commands.add_parser("optimize", help="find the best sampler of a bundle for a budget, and put it in")
    command.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a bundle's folder")
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument("--nfe", type=int, help="network evaluations an image may cost, guidance counted twice")
    goal.add_argument("--budget", metavar="80ms", help="milliseconds an image may take on this machine")
    goal.add_argument("--quality", type=float, help="RMS distance to the many-step result that may be left, 0.02 say")
    command.add_argument("--batch", type=int, default=16, help="images drawn together, for the latency")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: the bundle itself)")
    command.add_argument("--dry-run", action="store_true", help="search and show, write nothing")
    command.add_argument("--methods", default="shortest_path,cma_es,least_squares", help="comma-separated")
    command.add_argument("--diffusers", action="store_true", help="only steps that diffusers takes as well")
    command.add_argument("--iterations", type=int, default=200, help="of gradient descent; CMA-ES may spend as much")
    command.add_argument("--tries", type=int, default=48, help="grids of each plain search")
    command.add_argument("--noises", type=int, default=128, help="fresh noises that the methods are judged on")
    command.add_argument("--seed", type=int, default=0, help="of the noises and the searches")
    command.add_argument("--page", type=Path, metavar="FILE", help="show it as an HTML page too, with pictures")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    command.set_defaults(command=_optimize)
    costs = commands.add_parser("device-cost", help="what one network evaluation costs on this machine")
    costs.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a bundle's folder")
    costs.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="images in a call")
    costs.add_argument("--again", action="store_true", help="measure anew; else a table of before is read back")
    costs.add_argument("--json", action="store_true", help="print JSON instead of a table")
    costs.set_defaults(command=_device_cost)


def milliseconds(text: str) -> float:
    """80, 80ms or 0.08s as milliseconds.  Raises: DataError for anything else."""
    from mlx_tasks.errors import DataError

    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s)?\s*", text)
    if not found or float(found[1]) <= 0:
        raise DataError(f"a budget is a time above 0 such as 80ms or 0.08s, got {text!r}")
    return float(found[1]) * (1000.0 if found[2] == "s" else 1.0)


def _optimize(arguments: argparse.Namespace) -> int:
    from mlx_tasks import hardware

    machine = hardware.prepare()
    from mlx_tasks.errors import DataError
    from mlx_tasks.learned_steps.methods import Effort
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.optimizing.bundle_update import put_sampler
    from mlx_tasks.optimizing.device_cost import measure_cost
    from mlx_tasks.optimizing.optimizer import METHODS, MOST_STEPS, Optimizer

    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    unknown = sorted(set(methods) - {*METHODS, "gradient", "gradient_levels"})
    if unknown:
        raise DataError(
            f"no method named {unknown[0]!r}; there are: {', '.join((*METHODS, 'gradient', 'gradient_levels'))}"
        )
    if arguments.diffusers:
        methods = [name for name in methods if name not in ("gradient", "least_squares")]
    for name in ("batch", "iterations", "noises", "tries"):
        if getattr(arguments, name) < 1:
            raise DataError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.page and (arguments.page.is_dir() or not arguments.page.absolute().parent.is_dir()):
        raise DataError(f"--page is a file to write, in a folder that there is, got {arguments.page}")
    quality: float = 1.0 if arguments.quality is None else arguments.quality
    if not (math.isfinite(quality) and quality > 0):
        raise DataError(f"--quality is a distance above 0, 0.02 for example, got {quality!r}")
    budget = milliseconds(arguments.budget) if arguments.budget else None
    bundle = read_bundle(arguments.model)

    def tell(text: str) -> None:
        if not arguments.json:
            print(f"optimize: {text}", flush=True)

    cost = measure_cost(bundle, arguments.batch, machine.chip)
    tell(
        f"a step takes {cost.step_ms:.3g} ms an image in batches of {cost.batch} on {cost.chip} "
        f"({cost.step_low_ms:.3g} to {cost.step_high_ms:.3g}), a run {cost.fixed_ms:.3g} ms beside its steps"
    )
    branches = 1 if bundle.sampler.guidance_scale in (0.0, 1.0) else 2
    steps = None
    if arguments.nfe is not None:
        if arguments.nfe < branches:
            raise DataError(f"--nfe must be at least {branches}: this bundle takes that many evaluations a step")
        steps = arguments.nfe // branches
    elif budget is not None:
        steps = cost.steps_within(budget)
    effort = Effort(arguments.tries, arguments.iterations, arguments.seed)
    optimizer = Optimizer(bundle, effort, noises=arguments.noises, methods=methods, tell=tell)
    if steps is not None and steps > MOST_STEPS:
        tell(f"{steps} steps would fit; beyond {MOST_STEPS} no grid is searched")
        steps = MOST_STEPS
    outcome = optimizer.at(steps) if steps is not None else optimizer.fewest(quality)
    before = {"solver": bundle.sampler.solver, "timesteps": list(bundle.sampler.timesteps), "nfe": bundle.sampler.nfe}
    told = {
        "goal": {"nfe": arguments.nfe, "budget_ms": budget, "quality": arguments.quality},
        "steps": outcome.num_steps,
        "method": outcome.kept,
        "verdict": outcome.verdict,
        "error": {key: outcome.best[key] for key in ("error", "low", "high")},
        "latency_ms": cost.run_ms(outcome.num_steps),
        "cost": cost.as_dict(),
        "before": before,
    }
    if arguments.json:
        print(json.dumps({**told, "methods": outcome.rows, "curve": optimizer.curve()}, indent=2))
    else:
        _print(optimizer, outcome, cost)
    if not arguments.dry_run:
        out = arguments.out or arguments.model
        put_sampler(arguments.model, out, optimizer.sampler(outcome), told)
        tell(f"written to {out}")
    if arguments.page:
        from mlx_tasks.files import atomic_write_text
        from mlx_tasks.optimizing.page import render

        atomic_write_text(arguments.page, render(optimizer, outcome, told))
        tell(f"shown in {arguments.page}")
    return 0


def _device_cost(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from mlx_tasks import hardware

    machine = hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.optimizing.cost_table import cost_table, fastest

    rows = cost_table(read_bundle(arguments.model), machine.chip, batches=arguments.batches, again=arguments.again)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    title = f"One denoiser call on {machine.chip}: milliseconds an image"
    table = Table(title=title, title_justify="left")
    for head in ("images a call", "numbers", "guidance", "ms an image", "lowest to highest"):
        table.add_column(head, justify="left" if head in ("numbers", "guidance") else "right")
    for row in rows:
        mark = "◆ " if row == fastest(rows, row.batch, guided=row.guidance != "none") else "  "
        spread = f"{row.low_ms:.3g} to {row.high_ms:.3g}"
        table.add_row(str(row.batch), row.dtype, row.guidance, f"{mark}{row.ms:.3g}", spread)
    console = Console()
    console.print(table)
    console.print("◆ the fastest; guidance: both branches together in one batch, or apart")
    return 0


def _print(optimizer: Any, outcome: Any, cost: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from mlx_tasks.report.charts import grid_name
    from mlx_tasks.report.svg import number

    console = Console()
    title = (
        f"{outcome.num_steps} steps, {cost.run_ms(outcome.num_steps):.3g} ms an image: distance to the many-step result"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("steps chosen by", "error", "95 %", "evaluations", "seconds", "diffusers"):
        table.add_column(
            head, justify="left" if head == "steps chosen by" else "right", no_wrap=head == "steps chosen by"
        )
    for name, row in sorted(outcome.rows.items(), key=lambda item: item[1]["error"]):
        table.add_row(
            ("◆ " if name == outcome.kept else "  ") + grid_name(name),
            f"{row['error']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            number(row["learning_evaluations"]),
            f"{row['learning_seconds']:.0f}",
            "no" if row["learned"] else "yes",
        )
    console.print(table)
    console.print("evaluations, seconds: spent on finding them; diffusers: whether it takes them")
    rows = optimizer.curve()
    budgets = sorted({row["nfe"] for row in rows})
    names = list(dict.fromkeys(row["method"] for row in rows))
    curve = Table(title="Error by network evaluations", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    curve.add_column("", no_wrap=True)
    for budget in budgets:
        curve.add_column(str(budget), justify="right")
    for name in names:
        found = {row["nfe"]: row["error"] for row in rows if row["method"] == name}
        curve.add_row(grid_name(name), *(f"{found[n]:.3f}" if n in found else "" for n in budgets))
    console.print(curve)
