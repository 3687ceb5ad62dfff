"""params.yaml in and out: the typed tree from its file, a preset and dotted overrides, and back.

`params.yaml` holds the defaults, `include/presets/NAME.yaml` changes some of them, and dotted overrides
(`train.steps=800`) change single values; the same from the CLI, DVC and Airflow's form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.values import ParamsDumper, schema_of, split_setting, typed
from mlx_tasks.yaml_text import read_yaml


def load_config(root: Path, preset: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """The tree of `root`/params.yaml, changed by a preset and by dotted overrides, in that order.

    Raises: DataError naming each key, the value received and the rule it breaks.
    """
    tree = _read_yaml(root / "params.yaml")
    if preset:
        path = root / "include" / "presets" / f"{preset}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise DataError(f"no preset named {preset!r}; there are: {names}")
        tree = _merge(tree, _read_yaml(path))
    for key, value in (overrides or {}).items():
        _set(tree, key, value)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """A tree of plain values as a Config.  Raises: DataError as `load_config`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in e['loc']) or 'params'}: {e['msg']} (got {e['input']!r:.120})"
            for e in error.errors()
        ]
        raise DataError("params are not valid:\n  " + "\n  ".join(lines)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=800` as a key and its value, read by what the key takes.  Raises: DataError."""
    key, value = split_setting(text)
    return key, typed(key, value, schema_of(key))


def write_params(config: Config, path: Path) -> None:
    """Write the resolved tree as params.yaml (to a temporary name, then renamed)."""
    from mlx_tasks.files import atomic_write_text

    atomic_write_text(path, yaml.dump(config.dump(), Dumper=ParamsDumper, sort_keys=False, allow_unicode=True))


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
    *parents, leaf = dotted.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise DataError(f"override {dotted!r}: {part!r} holds a value, not a branch")
    tree[leaf] = value
