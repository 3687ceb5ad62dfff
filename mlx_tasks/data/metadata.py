"""Metadata files: what their rows say of the pictures, which files are read, and which are not and why."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mlx_tasks.data.almost import Almost
from mlx_tasks.data.tables import CAPTION_KEYS, LABEL_KEYS, columns_of, keys_of, read_records
from mlx_tasks.data.told import some
from mlx_tasks.data.tree import METADATA, Tree, posix
from mlx_tasks.errors import DataError

MOST_TRIED = 32
"""Tables of other names that are tried; where there are more, they are one for each picture, or about other things."""

MOST_UNREAD = 100
"""Names of columns that are not read that are kept: a row may have any."""

_MEANING = f"labels are in a column {' or '.join(LABEL_KEYS)}, captions in {' or '.join(CAPTION_KEYS)}"

_ONCE = "give one row an image (several captions of one are a list in a .jsonl row's text)"

WANTED = "metadata.jsonl (or .csv, .parquet) with file_name, relative to its own folder, and text or label"


class Row(NamedTuple):
    """What one row says of its picture, as written there."""

    label: Any
    caption: Any


@dataclass
class Metadata:
    """What metadata files say.

    Attributes:
        rows: by picture.
        lost: {path: (reason, detail)} of rows that name no picture.
        files: {the files that were read: the columns that were}.
        ignored: {table that is not read: why}.
        unread: {file that was read: the columns of it that were not}.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    lost: dict[str, tuple[str, str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def read_metadata(tree: Tree) -> Metadata:
    """What the folder's metadata says.

    A file named `metadata` speaks for the files under its own folder and must be sound. Where there is none, any other
    table is tried: it is read where its columns name pictures and captions or labels, half of its rows at least name a
    picture that is there, and no other table names the same; else it is named as ignored.
    Raises: DataError where a file named `metadata` cannot be read.
    """
    told, names = Metadata(), _Names(tree)
    official = [name for name in tree.tables if os.path.basename(name).lower() in METADATA]
    others = [name for name in tree.tables if name not in set(official)]
    for folder in {os.path.dirname(name) for name in official}:
        there = [os.path.basename(name) for name in official if os.path.dirname(name) == folder]
        if len(there) > 1:
            raise DataError(f"{tree.folder / folder} holds both {' and '.join(there)}: keep one")
    for name in official:
        table = _read(tree, name, names)
        if table.rows or table.lost:
            _join(told, table)
        else:
            told.ignored[posix(name)] = "it has no rows"
    if official:
        told.ignored.update((name, f"{posix(official[0])} is read") for name in others)
        return told
    tried: dict[str, _Table] = {}
    if len(others) > MOST_TRIED:
        told.ignored.update(dict.fromkeys(others, f"there are {len(others)} tables, and which is meant is not clear"))
        return told
    for name in others:
        try:
            table = _read(tree, name, names)
        except DataError as error:
            told.ignored[name] = str(error).replace(str(tree.folder / name), "it")
            continue
        if why := _unfit(table):
            told.ignored[name] = why
        else:
            tried[name] = table
    for name, table in tried.items():
        rivals = [other for other in tried if other != name and not table.rows.keys().isdisjoint(tried[other].rows)]
        if rivals:
            told.ignored[name] = f"{', '.join(map(posix, rivals))} names the same images"
        else:
            _join(told, table)
    return told


@dataclass
class _Table:
    """One file's rows."""

    name: str
    rows: dict[str, Row] = field(default_factory=dict)
    lost: dict[str, tuple[str, str]] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    says: bool = False


def _read(tree: Tree, name: str, names: _Names) -> _Table:
    """The rows of one file.  Raises: DataError."""
    table, base = _Table(name), os.path.dirname(posix(name))
    for place, record in read_records(tree.folder / name):
        columns = columns_of(keys_of(record))
        named = record.get(columns.file) if columns.file else None
        if not isinstance(named, str) or not named.strip():
            raise DataError(f"{place}: every row needs a file_name, text that names the image; got {named!r:.80}")
        label = columns.label if _may_be_label(columns.label, record) else None
        used = [columns.file, label, *columns.captions]
        table.columns.update(dict.fromkeys(key for key in used if key))
        if len(table.unread) < MOST_UNREAD:
            table.unread.update(dict.fromkeys(key for key in keys_of(record) if key and key not in used))
        table.says |= len(table.columns) > 1
        target, problem = names.locate(base, str(columns.file), named)
        if target in table.rows or target in table.lost:
            raise DataError(f"{place}: {target!r} has a row already: {_ONCE}")
        if problem:
            table.lost[target] = problem
        else:
            table.rows[target] = _row(record, label, columns.captions)
    return table


def _may_be_label(column: str | None, record: dict[str, Any]) -> bool:
    """Not `labels` of boxes and the like; but what is called label must be one."""
    return column == "label" or (column is not None and isinstance(record.get(column), str | int | None))


def _row(record: dict[str, Any], label: str | None, captions: tuple[str, ...]) -> Row:
    return Row(record.get(label) if label else None, next((record[key] for key in captions if record.get(key)), None))


def _join(told: Metadata, table: _Table) -> None:
    for target in [*table.rows, *table.lost]:
        if target in told.rows or target in told.lost:
            raise DataError(f"{table.name}: {target!r} has a row already, in another file: {_ONCE}")
    told.rows |= table.rows
    told.lost |= table.lost
    told.files[posix(table.name)] = ", ".join(table.columns)
    if unread := [f"{name!r:.40}".strip("'") for name in table.unread if name not in table.columns]:
        told.unread[posix(table.name)] = some(unread) + ("" if table.says else f" ({_MEANING})")


def _unfit(table: _Table) -> str:
    """Why a table of another name is not read; nothing where it is."""
    total = len(table.rows) + len(table.lost)
    if not total:
        return "it has no rows"
    if not table.says:
        return "it has neither captions nor labels"
    if 2 * len(table.rows) < total:
        first = next(iter(table.lost.values()))[1]
        return f"only {len(table.rows)} of its {total} rows name an image that is there ({first})"
    return ""


class _Names:
    """Finds the picture that a row names."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._there = set(tree.paths) if tree.tables else set()
        self._almost: Almost | None = None

    def locate(self, base: str, column: str, name: str) -> tuple[str, tuple[str, str] | None]:
        """(the image's path in the dataset, why it cannot be used)."""
        parts = PurePosixPath(name.strip()).parts
        target = unicodedata.normalize(
            "NFC", os.path.normpath((PurePosixPath(base) / PurePosixPath(*parts)).as_posix())
        )
        if target in self._there:
            return target, None
        outside = target.startswith(("../", "/")) or target == ".."
        if target in self._tree.refused:
            return target, self._tree.refused[target]
        if self._almost is None:
            self._almost = Almost(self._tree.paths)
        detail = f"{column} {name[:200]!r}{self._almost.told(base, name)}"
        return target, ("outside_folder" if outside else "missing_file", detail)


def ignored_lines(told: Metadata, captioned: bool, shown: int = 5) -> Iterator[str]:
    """A line for each table, or its columns, that is not read, and what would be where captions come from nowhere."""
    for name, columns in list(told.unread.items())[:shown]:
        yield f"columns of {name} that are not read: {columns}"
    for name, why in list(told.ignored.items())[:shown]:
        yield f"{posix(name)}, which is not read: {why}"
    if len(told.ignored) > shown:
        yield f"{len(told.ignored) - shown} more tables"
    if told.ignored and not told.files and not captioned:
        yield f"no table is metadata; that would be {WANTED}"
