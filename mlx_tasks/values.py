"""A value as a person types it after `KEY=`, read by what its key takes.

Text is taken as typed: a path may hold `#`, `: `, quotes or spaces. Anything else is read as YAML 1.2, in which `on` is
a word, `010` no number and `12:30` no count of minutes. Imports neither Airflow nor MLX.
"""

from __future__ import annotations

import difflib
import functools
import re
from typing import Any

import yaml

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.yaml_text import parse_yaml

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list, as [1, 2]",
    "object": "a mapping, as {key: value}",
    "null": "null",
}
_SWITCHES = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


def typed(key: str, text: str, schema: dict[str, Any] | None) -> Any:
    """The value of `key` that a text means.

    schema: JSON schema of what the key takes; None for a key that there is none of: whoever reads it will say so.
    Raises: DataError naming the key, what it takes and the text.
    """
    kinds = kinds_of(schema) if schema else {"string"}
    if "string" in kinds:
        return None if "null" in kinds and text.strip() in ("", "null") else text
    try:
        value = parse_yaml(text, key, _Core)
    except DataError:
        value = text
    if isinstance(value, str) and "boolean" in kinds:
        value = _SWITCHES.get(value.lower(), value)
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        value = int(value)  # 1e3
    if _kind(value) not in kinds and not ("number" in kinds and _kind(value) == "integer"):
        takes = " or ".join(words for name, words in _TYPES.items() if name in kinds)
        raise DataError(f"{key} takes {takes}, got {text!r:.120}")
    return value


def kinds_of(schema: dict[str, Any]) -> set[str]:
    """The JSON types that a schema allows."""
    own = schema.get("type", [])
    found = {own} if isinstance(own, str) else set(own)
    return found.union(*(kinds_of(one) for one in schema.get("anyOf", [])))


def split_setting(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as its two parts.  Raises: DataError where there is no `=` or nothing before it."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise DataError(f"a value is set by KEY=VALUE, got {text!r:.120}")
    return key.strip(), value


def schema_of(key: str) -> dict[str, Any] | None:
    """JSON schema of the value at a dotted key of params.yaml, with every reference put in place; None for no key."""
    tree = _tree()
    node: dict[str, Any] = tree
    for part in key.split("."):
        node = _inlined(node, tree).get("properties", {}).get(part)
        if node is None:
            return None
    return _inlined(node, tree)


def near(key: str) -> list[str]:
    """Dotted keys of params.yaml that somebody who wrote `key` may have meant, at most three."""
    keys, asked = _keys(), key.lower().replace("-", "_").strip(".")
    same = [one for one in keys if one == asked or one.endswith(f".{asked}")]
    return (same or difflib.get_close_matches(asked, keys, 3, 0.75))[:3]


@functools.cache
def _keys() -> tuple[str, ...]:
    """Every dotted key, branches too."""
    found: list[str] = []

    def walk(node: Any, above: str) -> None:
        for name, inner in node.get("properties", {}).items():
            found.append(f"{above}{name}")
            walk(inner, f"{above}{name}.")

    walk(_inlined(_tree(), _tree()), "")
    return tuple(found)


def _inlined(node: Any, tree: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, tree) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = tree["$defs"][node["$ref"].rsplit("/", 1)[1]]
        return _inlined({**named, **{k: v for k, v in node.items() if k != "$ref"}}, tree)
    return {key: _inlined(value, tree) for key, value in node.items()}


@functools.cache
def _tree() -> dict[str, Any]:
    return Config.model_json_schema(by_alias=True)


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "string")


class _Core(yaml.SafeLoader):
    """PyYAML with the words that YAML 1.2's core schema knows."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own name and shape)


class ParamsDumper(yaml.SafeDumper):
    """PyYAML that also quotes a text that YAML 1.2 takes for a number ("1e3"): DVC reads params.yaml by that."""


for _loader in (_Core, ParamsDumper):
    _loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Core.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Core.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Core.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
ParamsDumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+$|0x[0-9a-fA-F]+$"), ["0"])
