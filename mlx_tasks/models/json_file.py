"""JSON that comes from anywhere, read within bounds: what passes is small, flat, finite, and can be written again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError

MOST_BYTES = 8 << 20
"""Of one file. The largest we write, a table of 100,000 betas, takes 2.2 MB."""
DEEPEST = 32
LARGEST_INTEGER = 2**53
"""Above it other readers, which keep numbers as doubles, read another number."""


def read_mapping(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """A JSON object.

    infinite: lets -Infinity pass, which diffusers writes for `lambda_min_clipped`.
    Raises: DataError if the file is missing, is too large, is no JSON, or holds another kind of value.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; is this a diffusers folder?") from None
    return parse_mapping(data, str(path), infinite=infinite)


def parse_mapping(data: bytes, name: str, *, infinite: bool = False) -> dict[str, Any]:
    """The JSON object of some bytes; `name` says in messages where they are from.

    Refused: more than MOST_BYTES or DEEPEST levels, a key twice, whole numbers beyond 2**53, numbers that are not
    finite, and text that is no Unicode (lone surrogates).
    Raises: DataError.
    """
    if len(data) > MOST_BYTES:
        raise DataError(f"{name} must have at most {MOST_BYTES} bytes, it has more")
    infinities = {"-Infinity": -math.inf} if infinite else {}

    def constant(word: str) -> float:
        if word not in infinities:
            raise DataError(f"{name} must hold finite numbers only, got {word}")
        return infinities[word]

    def integer(digits: str) -> int:
        if len(digits) > 20 or abs(int(digits)) > LARGEST_INTEGER:
            raise DataError(f"{name} must hold whole numbers up to 2**53 only, got {digits:.30}")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise DataError(f"{name} must hold finite numbers only, got {digits:.30}")
        return value

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{name} must name each key once, {twice!r:.80} is there twice")
        return found

    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=constant,
            parse_int=integer,
            parse_float=number,
            object_pairs_hook=mapping,
        )
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{name} must be at most {DEEPEST} levels deep, it is deeper") from None
    except ValueError as error:
        raise DataError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{name} must hold a JSON object, got {type(value).__name__}")
    for text in _texts(value, name):
        if not _writable(text):
            raise DataError(f"{name} must hold Unicode text, got {text!r:.80}, which holds half a surrogate pair")
    return value


def _texts(value: Any, name: str) -> Iterator[str]:
    """Every key and text under a value.  Raises: DataError where it lies too deep."""
    waiting = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list):
            if depth > DEEPEST:
                raise DataError(f"{name} must be at most {DEEPEST} levels deep, it is deeper")
            if isinstance(one, dict):
                yield from one
                one = list(one.values())
            waiting += [(inner, depth + 1) for inner in one if isinstance(inner, dict | list | str)]


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
