"""Rows of a table about pictures: lines of JSON, CSV, Parquet or one JSON value; and which columns say what."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mlx_tasks.errors import DataError

FILE_KEYS = (
    "file_name image_file_name filename file image image_path image_file image_name img path file_path filepath"
    " filepaths".split()
)
CAPTION_KEYS = ("text", "caption", "captions", "prompt", "description")
LABEL_KEYS = ("label", "labels", "class", "class_name")
"""The names of columns that are read, the first of several first; case, spaces and hyphens do not matter."""

MAX_JSON_MB = 64
"""A JSON file in one piece above this is not read: it is held in memory ten times over."""

MAX_ROW = 1 << 20
"""Longest line of a table (characters)."""

_DELIMITERS = ",;\t"


class Columns(NamedTuple):
    """Which of a record's keys names the picture, which its label, and which its caption, in this order."""

    file: str | None
    label: str | None
    captions: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def columns_of(keys: tuple[str, ...]) -> Columns:
    """The columns of a record with these keys; a single `..._file_name` names the picture as `file_name` does."""
    plain = {re.sub(r"[\s-]+", "_", key.strip().lower()): key for key in reversed(keys)}
    others = [name for name in plain if name.endswith("_file_name")]
    known = [*FILE_KEYS, *others] if len(others) == 1 else FILE_KEYS
    first = lambda names: next((plain[name] for name in names if name in plain), None)  # noqa: E731
    return Columns(first(known), first(LABEL_KEYS), tuple(plain[name] for name in CAPTION_KEYS if name in plain))


def keys_of(record: dict[str, Any]) -> tuple[str, ...]:
    """The record's keys that are text."""
    return tuple(key for key in record if isinstance(key, str))


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, record) of each row.  Raises: DataError naming the line."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == ".json":
                yield from _json_value(path, file)
            else:
                yield from _json_lines(path, file) if kind in (".jsonl", ".ndjson") else _csv_lines(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8: {error}") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file, none longer than a row can be: a file without line ends would be held in memory at once."""
    for number in itertools.count(1):
        line = file.readline(MAX_ROW + 1)
        if not line:
            return
        if len(line) > MAX_ROW:
            raise DataError(f"{path}, line {number} is longer than {MAX_ROW} characters: a row is one picture's")
        yield line


def _json_lines(path: Path, lines: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, lines), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        record = _parsed(line, place)
        if not isinstance(record, dict):
            raise DataError(f"{place} must be a JSON object, got {type(record).__name__}")
        yield place, record


def _json_value(path: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """A list of records, or {picture: caption or record}."""
    text = file.read((MAX_JSON_MB << 20) + 1)
    if len(text) > MAX_JSON_MB << 20:
        raise DataError(f"{path} is over {MAX_JSON_MB} MB of JSON in one piece: write a row a line, as metadata.jsonl")
    value = _parsed(text, str(path))
    if isinstance(value, dict) and all(isinstance(entry, str | dict) for entry in value.values()):
        rows = [{"file_name": name, **({"text": of} if isinstance(of, str) else of)} for name, of in value.items()]
    else:
        rows = value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold a list of JSON objects, or one of captions by file name")
    for number, row in enumerate(rows, 1):
        yield f"{path}, entry {number}", row


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply to be read: a row is one flat JSON object") from None


def _csv_lines(path: Path, lines: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        header = next(_lines(path, lines), "")
        lines.seek(0)
        reader = csv.DictReader(_lines(path, lines), delimiter=_delimiter(header))
        names = tuple(name for name in reader.fieldnames or () if name)
        _check_columns(path, names)
        for record in reader:
            record.pop(None, None)  # pyright: ignore[reportArgumentType]  (cells beyond the header's)
            yield f"{path}, line {reader.line_num}", record
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}") from None


def _delimiter(header: str) -> str:
    """The first of comma, semicolon and tab that gives the header a column for the picture."""
    for delimiter in _DELIMITERS:
        if columns_of(tuple(name.strip('"\r\n ') for name in header.split(delimiter))).file is not None:
            return delimiter
    return ","


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            _check_columns(path, names)
            columns = columns_of(names)
            wanted = [name for name in (columns.file, columns.label, *columns.captions) if name]
            row = 0
            for batch in file.iter_batches(columns=wanted):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not Parquet: {' '.join(str(error).split())[:200]}") from None


def _check_columns(path: Path, names: tuple[str, ...]) -> None:
    if columns_of(names).file is None:
        raise DataError(f"{path} must have a column file_name; it has {list(names)}")
