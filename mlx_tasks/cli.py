"""`mlx-tasks`: what dvc.yaml and a person call. The only module that prints, with the packages' `commands` modules."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import io
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from mlx_tasks.catalog import STAGES
from mlx_tasks.errors import DataError, ExitCode, StageError

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


_DISK = {
    errno.ENOSPC: (ExitCode.UNAVAILABLE, "make room on the disk (`mlx-tasks clean`), then again"),
    errno.EDQUOT: (ExitCode.UNAVAILABLE, "make room in your quota (`mlx-tasks clean`), then again"),
    errno.EROFS: (ExitCode.BAD_INPUT, "the disk may only be read: name a folder that may be written by ADO_STATE"),
    errno.EACCES: (ExitCode.BAD_INPUT, "it is not yours to read or write: mend its rights, or name another place"),
    errno.EPERM: (ExitCode.BAD_INPUT, "it is not yours to change: mend its rights, or name another place"),
}
"""What a disk refuses -> the kind of end, and what helps."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says what kind of end it was (mlx_tasks/errors.py)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding must not end a command
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    finally:
        _let_go(sys.stdout)


def _is_cut(stream: TextIO) -> bool:
    """Whether nobody reads a pipe any more."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _let_go(stream: TextIO) -> None:
    """Write out what a stream holds; where nobody takes it, it goes nowhere instead of ending Python in a trace."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: argparse.Namespace) -> int:
    try:
        if os.environ.get("ADO_AUTHORITY"):
            from mlx_tasks.trust import believe

            believe(os.environ)
        code = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except StageError as error:
        print(f"mlx-tasks: {error}", file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_cut(sys.stdout):  # `| head` has seen enough
            return 128 + signal.SIGPIPE
        if error.errno not in _DISK:
            raise
        code, remedy = _DISK[error.errno]
        place = f": {error.filename}" if error.filename else ""
        print(f"mlx-tasks: {error.strerror}{place}: {remedy}", file=sys.stderr)
        return int(code)
    except KeyboardInterrupt:
        print("mlx-tasks: interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


_ARGUMENTS = {"generation": "of the search, from 0", "slot": "one of {} in params.yaml"}


class _Help(argparse.HelpFormatter):
    """Tells the default of each option that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told, value = action.help, action.default
        silent = (
            told is None or "default" in told or isinstance(value, bool) or not isinstance(value, int | float | str)
        )
        return told if silent or value in ("", argparse.SUPPRESS) else f"{told} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=_Help)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mlx-tasks", description="The adaptive diffusion optimizer's stages and tools.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for stage in STAGES.values():
        command = commands.add_parser(stage.name, help=stage.summary)
        for name in stage.arguments:
            command.add_argument(f"--{name}", type=int, required=True, help=_ARGUMENTS[name].format(stage.slots))
        command.add_argument("--root", type=Path, default=Path.cwd(), help="the workspace (default: this folder)")
        command.set_defaults(command=_run_stage, stage=stage)
    for module in COMMAND_MODULES:
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).add_commands(commands)
    _describe(parser)
    return parser


def _describe(parser: argparse.ArgumentParser) -> None:
    """Let each command's own help begin with what the list of commands says of it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for told in action._choices_actions:
                action.choices[told.dest].description = f"{told.help}." if told.help else None
                _describe(action.choices[told.dest])


def _run_stage(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stages.process import run_stage

    if not (arguments.root / "params.yaml").is_file():  # before anything is written where nothing of ours is
        raise DataError(f"{arguments.root.resolve()} has no params.yaml: go to a workspace, or name it with --root")
    values = {name: getattr(arguments, name) for name in arguments.stage.arguments}
    return run_stage(arguments.stage, arguments.root, values)


if __name__ == "__main__":
    sys.exit(main())
