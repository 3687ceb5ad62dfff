"""Rows of a table about pictures: lines of JSON, CSV, Parquet or one JSON value; and which columns say what."""

from __future__ import annotations

import codecs
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mlx_tasks.data.csv_rows import csv_rows
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
        with path.open(encoding=_encoding(path), newline="") as file:
            if kind == ".json":
                yield from _json_value(path, file)
            elif kind in (".jsonl", ".ndjson"):
                yield from _json_lines(path, file)
            else:
                yield from csv_rows(path, file, functools.partial(_lines, path), functools.partial(_used, path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeError as error:
        raise DataError(
            f"cannot read {path} as UTF-8: {error}. Save it as UTF-8 (Excel: CSV UTF-8; or `iconv -f WINDOWS-1252 "
            "-t UTF-8`)"
        ) from None


def _encoding(path: Path) -> str:
    """UTF-8, or UTF-16 where the file's first bytes say so, as Excel's do."""
    with path.open("rb") as file:
        marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if marked else "utf-8-sig"


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
        record = _parsed(line, place, _LINE)
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


_LINE = (
    ". A line is one whole object, with no comma behind it or before its brace; JSON in one piece over several lines "
    "is called metadata.json"
)


def _parsed(text: str, place: str, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}{hint}") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply to be read: a row is one flat JSON object") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            wanted = _used(path, names)
            if pa.types.is_struct(file.schema_arrow.field(wanted[0]).type):
                raise DataError(
                    f"{path} holds pictures inside, in its column {wanted[0]}: save them as files, with rows that name "
                    'them (`datasets`: `row["image"].save("1.png")`)'
                )
            others = dict.fromkeys(name for name in names if name not in wanted)
            row = 0
            for batch in file.iter_batches(columns=wanted):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", {**record, **others}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not Parquet: {' '.join(str(error).split())[:200]}") from None


def _used(path: Path, names: tuple[str, ...]) -> list[str]:
    """The columns that are read.  Raises: DataError where none names the picture."""
    columns = columns_of(names)
    if columns.file is None:
        if not names:
            raise DataError(f"{path} is empty: it must have a column file_name, or be moved out")
        raise DataError(
            f"{path} must have a column file_name; it has {list(names)!s:.200} (the first row names the columns)"
        )
    return [name for name in (columns.file, columns.label, *columns.captions) if name]
