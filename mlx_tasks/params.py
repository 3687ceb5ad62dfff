"""params.yaml in and out: the typed tree from its file, a preset and dotted overrides, and back.

`params.yaml` holds the defaults, `include/presets/NAME.yaml` changes some of them, and dotted overrides
(`train.steps=800`) change single values; the same from the CLI, DVC and Airflow's form.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.values import ParamsDumper, near, schema_of, split_setting, typed
from mlx_tasks.yaml_text import read_yaml


def load_config(root: Path, preset: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """The tree of `root`/params.yaml, changed by a preset and by dotted overrides, in that order.

    Raises: DataError naming each key, the value received and the rule it breaks.
    """
    if not os.path.lexists(root / "params.yaml"):
        raise DataError(
            f"{root} has no params.yaml: run this in the checkout or in a run's workspace, or name one by --root"
        )
    tree = _read_yaml(root / "params.yaml")
    if preset:
        presets = {path.stem: path for path in (root / "include" / "presets").glob("*.yaml")}
        if preset not in presets:
            raise DataError(f"no preset named {preset!r:.120}; there are: {', '.join(sorted(presets)) or 'none'}")
        tree = _merge(tree, _read_yaml(presets[preset]))
    for key, value in (overrides or {}).items():
        _set(tree, key, value)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """A tree of plain values as a Config.  Raises: DataError as `load_config`."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in e['loc']) or 'params'}: {_rule(e)} (got {e['input']!r:.120})"
            for e in error.errors()
        ]
        raise DataError("params are not valid:\n  " + "\n  ".join(lines)) from None
    _check_sizes(config.dump(), "")
    return config


def resolved(root: Path, named: str) -> Path:
    """Where `data.path` leads, links followed.  Raises: DataError for a name that is no path."""
    try:
        return (root / Path(named).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"data.path: {named!r:.200} is no path: {error}") from None


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=800` as a key and its value, read by what the key takes.  Raises: DataError."""
    key, value = split_setting(text)
    return key, typed(key, value, schema_of(key))


def write_params(config: Config, path: Path) -> None:
    """Write the resolved tree as params.yaml (to a temporary name, then renamed)."""
    from mlx_tasks.files import atomic_write_text

    atomic_write_text(path, yaml.dump(config.dump(), Dumper=ParamsDumper, sort_keys=False, allow_unicode=True))


def _rule(error: Any) -> str:
    """What a value breaks; for a key that there is none of, the nearest ones."""
    if error["type"] != "extra_forbidden":
        return error["msg"]
    if found := near(".".join(str(part) for part in error["loc"])):
        return f"there is no such key; did you mean {' or '.join(found)}?"
    return "there is no such key; `mlx-tasks resolve` prints all of them"


def _check_sizes(value: Any, key: str) -> None:
    """Raises: DataError for a whole number that no double holds: MLX, DVC and MLflow would each make another of it."""
    if isinstance(value, int) and abs(value) > 2**53:
        raise DataError(f"{key} must be at most 2^53, got a number of {len(f'{abs(value):x}')} hex digits")
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        _check_sizes(inner, f"{key}.{name}".lstrip("."))


def _read_yaml(path: Path) -> dict[str, Any]:
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise DataError(f"{path} must hold a mapping, got {type(tree).__name__}")
    return tree


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    if not isinstance(dotted, str):
        raise DataError(f"an override's key is a dotted name, as train.steps, got {dotted!r:.80}")
    *parents, leaf = dotted.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise DataError(f"override {dotted!r}: {part!r} holds a value, not a branch")
    tree[leaf] = value
