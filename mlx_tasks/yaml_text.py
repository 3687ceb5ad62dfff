"""YAML that people write, read within bounds: what is asked for must stay near what is written.

A few lines of YAML can stand for gigabytes (an alias of a list of aliases of a list), nest until the stack ends, or
say one key twice with the first in vain. Each is refused with its place, before it is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mlx_tasks.errors import DataError
from mlx_tasks.files import open_regular

MAX_BYTES = 1 << 20
"""Longest text read."""

MAX_EXPANDED = 1 << 22
"""Characters and entries that a text may stand for once every alias is written out."""


def read_yaml(path: Path) -> Any:
    """The value of a YAML file.  Raises: DataError."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    try:
        return parse_yaml(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None


def parse_yaml(text: str, place: str, dialect: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value of a YAML text; `place` names it in messages.  Raises: DataError."""
    if len(text) > MAX_BYTES:
        raise DataError(f"{place} is longer than {MAX_BYTES} bytes, and no settings are")
    try:
        loader = dialect(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, place)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except DataError:
        raise
    except yaml.YAMLError as error:
        raise DataError(f"{place} is not YAML: {error}") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply to be read") from None
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{place} holds a value that YAML cannot build: {error}") from None


def _check(root: yaml.Node, place: str) -> None:
    """Refuse a tree that holds itself, that expands beyond bounds, or that has a key twice."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        if key in open_nodes:
            raise DataError(f"{place}, line {node.start_mark.line + 1}: an alias inside what it stands for has no end")
        open_nodes.add(key)
        if isinstance(node, yaml.ScalarNode):
            total = 1 + len(node.value)
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node, place)
            total = 1 + sum(size(name) + size(value) for name, value in node.value)
        else:
            total = 1 + sum(map(size, node.value))
        if total > MAX_EXPANDED:
            raise DataError(
                f"{place}, line {node.start_mark.line + 1}: its aliases stand for more than {MAX_EXPANDED} characters"
            )
        open_nodes.remove(key)
        sizes[key] = total
        return total

    size(root)


def _check_keys(node: yaml.MappingNode, place: str) -> None:
    seen: set[tuple[str, str]] = set()
    for name, _ in node.value:
        if isinstance(name, yaml.ScalarNode):
            key = (name.tag, name.value)
            if key in seen:
                raise DataError(f"{place}, line {name.start_mark.line + 1}: the key {name.value!r:.80} stands twice")
            seen.add(key)
