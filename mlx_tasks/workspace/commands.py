"""Commands about runs: open-run, node, close-run (what the DAG's tasks call), workspaces, resolve."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.events import emit
from mlx_tasks.params import load_config, parse_override, write_params
from mlx_tasks.registry.model_name import with_model_name


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    resolve = commands.add_parser("resolve", help="print params.yaml with a preset and overrides put in, and stop")
    resolve.add_argument("--preset", help="include/presets/NAME.yaml")
    resolve.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a dotted key and its value")
    resolve.add_argument("--root", type=Path, default=Path.cwd(), help="the workspace (default: this folder)")
    resolve.add_argument("--write", action="store_true", help="write them to params.yaml too")
    resolve.set_defaults(command=_resolve)

    workspaces = commands.add_parser("workspaces", help="list the runs' workspaces on this machine")
    workspaces.add_argument("--prune", type=int, metavar="KEEP", help="remove all but the newest KEEP")
    workspaces.set_defaults(command=_workspaces)

    again = commands.add_parser("reproduce", help="bring a registered version's run back here, and compare")
    again.add_argument("version", metavar="NAME/VERSION", help="or NAME@ALIAS")
    again.add_argument("--recompute", action="store_true", help="compute all of it again instead of fetching it")
    again.add_argument("--out", type=Path, help="the workspace to make (default: .state/reproduced/NAME-VERSION)")
    again.add_argument("--env", type=Path, help="a file of settings, such as worker.env")
    again.set_defaults(command=_reproduce)

    for name, function, help_text in (
        ("open-run", _open_run, "make a run's workspace: {run_id, form}"),
        ("node", _node, "run one stage in a run's workspace: {run, stage, arguments, locks, commit, fan_out}"),
        ("close-run", _close_run, "commit a run's artifacts and end it: {run, locks, succeeded}"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--spec", required=True, help="JSON, or - to read it from stdin")
        command.set_defaults(command=function)


def _reproduce(arguments: argparse.Namespace) -> int:
    from mlx_tasks.environment_file import take_env_file
    from mlx_tasks.workspace.paths import Places
    from mlx_tasks.workspace.reproduce import reproduce

    if arguments.env:
        take_env_file(arguments.env)
    done = reproduce(Places.from_environment(), arguments.version, arguments.recompute, arguments.out)
    for name, same in done.outs.items():
        print(f"{'same   ' if same else 'differs'}  {name}")
    for name, (kept, now, inside) in done.scores.items():
        print(f"{'within ' if inside else 'outside'}  {name}: {kept:.4g} then, {now:.4g} now")
    print(f"bundle: {'the same bytes' if done.bundle else 'other bytes'} as {done.uri}")
    print(f"{'reproduced' if done.same else 'NOT reproduced'}: {done.folder}")
    return 0 if done.same else 1


def _resolve(arguments: argparse.Namespace) -> int:
    import yaml

    overrides = dict(parse_override(text) for text in arguments.set)
    config = with_model_name(load_config(arguments.root, arguments.preset, overrides), arguments.root)
    print(yaml.safe_dump(config.dump(), sort_keys=False, allow_unicode=True), end="")
    if arguments.write:
        write_params(config, arguments.root / "params.yaml")
    return 0


def _workspaces(arguments: argparse.Namespace) -> int:
    from mlx_tasks.workspace.closing import list_workspaces, prune_workspaces
    from mlx_tasks.workspace.paths import Places

    places = Places.from_environment()
    if arguments.prune is not None:
        if arguments.prune < 0:
            raise DataError(f"--prune takes how many workspaces to keep, 0 or more, got {arguments.prune}")
        for path in prune_workspaces(places, arguments.prune):
            print(f"removed {path}")
    for run in list_workspaces(places):
        print(f"{run['run_id']}  {run['branch']}  {places.workspaces / run['slug']}")
    return 0


def _open_run(arguments: argparse.Namespace) -> int:
    from mlx_tasks.workspace.opening import open_run
    from mlx_tasks.workspace.paths import Places

    spec = _read_spec(arguments.spec, "run_id", "form")
    run = open_run(Places.from_environment(), spec["run_id"], spec["form"])
    for note in run.get("notes", []):
        print(f"open-run: {note}", flush=True)
    print(f"open-run: {run['run_id']} is {run['branch']} at {run['commit'][:12]}, params {run['digest']}", flush=True)
    emit("result", **run)
    return 0


def _node(arguments: argparse.Namespace) -> int:
    from mlx_tasks.workspace.node import Spec, known_stage, run_node
    from mlx_tasks.workspace.paths import Places

    spec = _read_spec(arguments.spec, "run", "stage")
    known_stage(spec["stage"])
    full = Spec(
        run=spec["run"],
        stage=spec["stage"],
        arguments=spec.get("arguments") or {},
        locks=spec.get("locks") or {},
        commit=spec.get("commit") or "",
        fan_out=spec.get("fan_out") or "",
    )
    return run_node(Places.from_environment(), full)


def _close_run(arguments: argparse.Namespace) -> int:
    from mlx_tasks.workspace.closing import close_run
    from mlx_tasks.workspace.paths import Places

    spec = _read_spec(arguments.spec, "run", "locks", "succeeded")
    closed = close_run(Places.from_environment(), spec["run"], spec["locks"], spec["succeeded"])
    print(f"close-run: {closed['branch']} at {closed['commit'][:12]}", flush=True)
    emit("result", **closed)
    return 0


def _read_spec(text: str, *keys: str) -> dict[str, Any]:
    try:
        spec = json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise DataError(f"--spec must be JSON: {error}") from None
    missing = [key for key in keys if not isinstance(spec, dict) or key not in spec]
    if missing:
        raise DataError(f"--spec lacks {', '.join(missing)}")
    return spec
