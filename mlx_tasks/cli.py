"""`mlx-tasks`: what dvc.yaml and a person call. The only module that prints, with the packages' `commands` modules."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from mlx_tasks.catalog import STAGES
from mlx_tasks.errors import ExitCode, StageError

COMMAND_MODULES = (
    "mlx_tasks.workspace.commands",
    "mlx_tasks.retention.commands",
    "mlx_tasks.tracking.commands",
    "mlx_tasks.stack.commands",
    "mlx_tasks.fleet.commands",
    "mlx_tasks.serving.commands",
    "mlx_tasks.monitoring.commands",
    "mlx_tasks.comparison.commands",
    "mlx_tasks.ablation.commands",
    "mlx_tasks.registry.commands",
    "mlx_tasks.metrics.commands",
    "mlx_tasks.optimizing.commands",
    "mlx_tasks.domains.commands",
)
"""Modules with `add_commands(subparsers)`, each light to import; a command's own work is imported when it runs."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says what kind of end it was (mlx_tasks/errors.py)."""
    arguments = _parser().parse_args(argv)
    try:
        if os.environ.get("ADO_AUTHORITY"):
            from mlx_tasks.trust import believe

            believe(os.environ)
        return arguments.command(arguments)
    except StageError as error:
        print(f"mlx-tasks: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("mlx-tasks: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx-tasks", description="The adaptive diffusion optimizer's stages and tools."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for stage in STAGES.values():
        command = commands.add_parser(stage.name, help=stage.summary)
        for name in stage.arguments:
            command.add_argument(f"--{name}", type=int, required=True)
        command.add_argument("--root", type=Path, default=Path.cwd(), help="the workspace (default: this folder)")
        command.set_defaults(command=_run_stage, stage=stage)
    for module in COMMAND_MODULES:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).add_commands(commands)
    return parser


def _run_stage(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stages.process import run_stage

    values = {name: getattr(arguments, name) for name in arguments.stage.arguments}
    return run_stage(arguments.stage, arguments.root, values)


if __name__ == "__main__":
    sys.exit(main())
