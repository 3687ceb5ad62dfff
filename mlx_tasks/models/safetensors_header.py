"""What a safetensors file says that it holds, read without its arrays and checked against its own size.

8 bytes: N, little-endian; N bytes of JSON {name: {dtype, shape, data_offsets}}; then the arrays, end to end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from mlx_tasks.errors import DataError
from mlx_tasks.models.json_file import MOST_BYTES, parse_mapping

BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Of one number, by safetensors' names."""
MOST_AXES = 8


class Entry(NamedTuple):
    """One array of a file: its type by safetensors' name, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers it holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """{name: entry} of a file.

    Raises: DataError where the header is too large, no JSON or names an array twice, where arrays are of unknown types,
        overlap or leave gaps, or where the file is longer or shorter than they are.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > total - 8:
                raise DataError(f"{path} is not a safetensors file: it has {total} bytes, its header asks for {length}")
            if length > MOST_BYTES:
                raise DataError(f"{path} is not a safetensors file: a header of {length} bytes, at most {MOST_BYTES}")
            text = file.read(length)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    told = parse_mapping(text, f"{path} is not a safetensors file: its header")
    notes = told.pop("__metadata__", None) or {}  # MLX writes null for none
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise DataError(f"{path} is not a safetensors file: its __metadata__ must map names to texts")
    entries, spans = {}, []
    for name, one in told.items():
        entries[name], span = _entry(path, name, one)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise DataError(f"{path} is not a safetensors file: its arrays overlap or leave gaps at byte {end}")
        end = stop
    if end != total - 8 - length:
        raise DataError(
            f"{path} is not a safetensors file: its arrays take {end} bytes, after the header it has "
            f"{total - 8 - length}"
        )
    return entries


def _entry(path: Path, name: str, one: Any) -> tuple[Entry, tuple[int, int]]:
    """An entry and where its bytes lie."""
    rule = f"{path} is not a safetensors file: {name!r:.80}"
    if not isinstance(one, dict) or set(one) != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"{rule} must hold dtype, shape and data_offsets, got {one!r:.80}")
    dtype, shape, span = one["dtype"], one["shape"], one["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise DataError(f"{rule} is of the unknown type {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(_count, shape)):
        raise DataError(f"{rule} must have up to {MOST_AXES} whole sizes, got {shape!r:.80}")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_count, span)):
        raise DataError(f"{rule} must have two data_offsets, got {span!r:.80}")
    entry = Entry(dtype, tuple(shape))
    if span[1] - span[0] != entry.size * BYTES[dtype]:
        raise DataError(f"{rule} has offsets {span}, {dtype} of shape {shape} takes {entry.size * BYTES[dtype]} bytes")
    return entry, (span[0], span[1])


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
