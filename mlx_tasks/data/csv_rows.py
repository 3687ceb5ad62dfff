"""Rows of a CSV file as people's programs write them; a row that cannot be read for certain is refused by its line."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mlx_tasks.errors import DataError

DELIMITERS = ",;\t|"


def csv_rows(
    path: Path, file: TextIO, lines: Callable[[TextIO], Iterable[str]], check: Callable[[tuple[str, ...]], list[str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, record) of each row.

    Empty lines and Excel's `sep=;` may stand before the header; blanks after a delimiter do not matter.
    lines: how the file's lines are taken.  check: the columns that are read, of the header's; it refuses what has none.
    Raises: DataError for more cells than the header has, a quote that stays open, a column of one name twice.
    """
    done = 1
    try:
        skipped, header = _header(lines(file))
        file.seek(0)
        kept = itertools.islice(lines(file), skipped, None)
        reader = csv.reader(kept, delimiter=_delimiter(header, check), skipinitialspace=True, strict=True)
        names = [name.strip() for name in next(reader, [])]
        done = skipped + 1
        used = check(tuple(name for name in names if name))
        if twice := [name for name, count in Counter(names).items() if count > 1 and name in used]:
            raise DataError(f"{path} has {Counter(names)[twice[0]]} columns named {twice[0]}: keep one")
        for cells in reader:
            done = reader.line_num + skipped
            if not cells:
                continue
            place = f"{path}, line {done}"
            if any(cell.strip() for cell in cells[len(names) :]):
                mark = reader.dialect.delimiter
                raise DataError(
                    f"{place} has {len(cells)} cells where the header has {len(names)}: put quotes around a text that "
                    f'holds the delimiter, as in 1.png{mark}"a dog{mark} asleep"'
                )
            yield place, {name: cell for name, cell in zip(names, cells, strict=False) if name}
    except csv.Error as error:
        raise DataError(
            f"{path} is not CSV: {error}, after line {done}. A quote is left open, or text follows a closing one: "
            'inside quotes, a quote is written twice ("a ""big"" dog")'
        ) from None


def _header(lines: Iterable[str]) -> tuple[int, str]:
    """(lines before the header, the header)."""
    skipped = 0
    for line in lines:
        if line.strip() and not line.lower().startswith("sep="):
            return skipped, line
        skipped += 1
    return skipped, ""


def _delimiter(header: str, check: Callable[[tuple[str, ...]], list[str]]) -> str:
    """The first that gives the header a column for the picture."""
    for delimiter in DELIMITERS:
        try:
            check(tuple(name.strip('"\r\n ') for name in header.split(delimiter)))
        except DataError:
            continue
        return delimiter
    return ","
