"""The embedded stack's commands: demo, up, down, follow."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.form import form_of


def add_commands(commands: Any) -> None:
    """Add this package's commands to the CLI's subparsers."""
    demo = commands.add_parser("demo", help="bring the stack up and take the digits through the whole chain")
    demo.add_argument("--preset", default="demo", help="include/presets/NAME.yaml")
    demo.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the run's form")
    demo.set_defaults(command=_demo)
    loop = commands.add_parser("loop", help="let the demo's champion slip on purpose and watch the chain mend it")
    loop.add_argument("--model", default="digits-sampler", help="a registered model with a champion")
    loop.add_argument("--damage", default="noise:0.15", help="what is done to the weights that serve")
    loop.set_defaults(command=_loop)
    secret = commands.add_parser("secret", help="print one of the embedded stack's secrets, for a sender's config")
    secret.add_argument(
        "name", choices=("alert_token", "alert_secret", "password"), help="password: of Airflow's admin"
    )
    secret.set_defaults(command=_secret)
    follow = commands.add_parser("follow", help="watch a run in the terminal")
    follow.add_argument("run_id", nargs="?", help="default: the newest demo run")
    follow.set_defaults(command=_follow)
    for name, help_text in (("up", "bring the stack up and leave it up"), ("down", "end the stack; its state is kept")):
        commands.add_parser(name, help=help_text).set_defaults(command=_up if name == "up" else _down)
    for command in (demo, follow):
        command.add_argument("--plain", action="store_true", default=None, help="lines, no live table")
    for name in ("demo", "loop", "secret", "follow", "up", "down"):
        commands.choices[name].add_argument("--root", type=Path, default=Path.cwd(), help="the checkout")


def _checkout(root: Path) -> Path:
    """The folder, if it is a checkout of this project: a stack elsewhere would wait for a DAG that never comes.

    Raises: DataError.
    """
    if not (root / "dags" / "optimize_diffusion.py").is_file():
        raise DataError(
            f"{root.resolve()} is no checkout of this project, for it has no dags/optimize_diffusion.py: go to yours, "
            "or name it with --root"
        )
    return root


def _demo(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stack.demo import demo

    _checkout(arguments.root)
    conf = {"preset": arguments.preset, **form_of(arguments.root, arguments.set)}
    return demo(arguments.root, conf, plain=arguments.plain)


def _loop(arguments: argparse.Namespace) -> int:
    from mlx_tasks.serving.drill import parse_drill
    from mlx_tasks.stack.loop import loop

    parse_drill(arguments.damage)
    return loop(_checkout(arguments.root), arguments.model, arguments.damage)


def _secret(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stack.layout import Layout
    from mlx_tasks.stack.secrets import load_secrets

    print(load_secrets(Layout.of(_checkout(arguments.root)).state)[arguments.name])
    return 0


def _follow(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stack.demo import follow_latest

    return follow_latest(arguments.root, arguments.run_id, plain=arguments.plain)


def _up(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stack.demo import up

    return up(_checkout(arguments.root))


def _down(arguments: argparse.Namespace) -> int:
    from mlx_tasks.stack.demo import down

    return down(arguments.root)
