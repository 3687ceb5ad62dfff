"""Columns of a million rows without a Python object a row: texts in one buffer, repeated texts as numbers, digests."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


class Texts:
    """Texts in order, as UTF-8 in one buffer: eight bytes each beside their own."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        """Put one text at the end; a lone surrogate, which no file can hold, becomes a question mark."""
        self._bytes += text.encode("utf-8", "replace")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode()

    def sizes(self) -> np.ndarray:
        """(N,) int64, the bytes of each."""
        return np.diff(np.array(self._ends, np.int64))

    def arrow(self) -> pa.Array:
        """The same as an Arrow column, which looks into this buffer: no `append` after it."""
        return _strings(np.frombuffer(self._ends, np.int64), memoryview(self._bytes))


class Categories:
    """Texts of which few are different, or none (None): each kept once, and four bytes a row.

    Attributes:
        values: the different ones, in order of first appearance.
    """

    def __init__(self) -> None:
        self.values: list[str | None] = []
        self._number: dict[str | None, int] = {}
        self._codes = array("i")

    def append(self, value: str | None) -> None:
        """Put one at the end."""
        code = self._number.setdefault(value, len(self._number))
        if code == len(self.values):
            self.values.append(value)
        self._codes.append(code)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, row: int) -> str | None:
        return self.values[self._codes[row]]

    @property
    def codes(self) -> np.ndarray:
        """(N,) int32, positions in `values`: a view, so no `append` while it is held."""
        return np.frombuffer(self._codes, np.int32)

    def arrow(self) -> pa.Array:
        """The same as an Arrow column of texts."""
        return taken(self.values, self.codes)


def taken(values: list[str | None], codes: np.ndarray) -> pa.Array:
    """The Arrow column of texts values[codes[i]]."""
    import pyarrow as pa

    return pa.array(values, pa.large_string()).take(pa.array(codes))


def hex_texts(digests: np.ndarray, known: np.ndarray) -> pa.Array:
    """The Arrow column of digests in hex, empty where not known.  digests: (N, D) uint8; known: (N,) bool."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    told = digests[known]
    characters = np.empty((len(told), 2 * digests.shape[1]), np.uint8)
    characters[:, ::2] = digits[told >> 4]
    characters[:, 1::2] = digits[told & 15]
    ends = np.zeros(len(digests) + 1, np.int64)
    np.cumsum(known * characters.shape[1], out=ends[1:])
    return _strings(ends, characters)


def digest_ranks(digests: np.ndarray) -> np.ndarray:
    """The place of each digest among the different ones, in byte order: equal digests have equal ranks.

    digests: (N, 32) uint8.  Returns: (N,) int64.
    """
    words = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
    order = np.lexsort(words.T[::-1])
    ordered = words[order]
    differs = (ordered[1:] != ordered[:-1]).any(axis=1)
    ranks = np.zeros(len(words), np.int64)
    ranks[order[1:]] = np.cumsum(differs)
    return ranks


def by_first_appearance(values: np.ndarray) -> np.ndarray:
    """Equal values numbered from 0 in the order in which they first appear.  (N,) integers; returns (N,) int64."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse.ravel()]


def _strings(ends: np.ndarray, characters: memoryview | np.ndarray) -> pa.Array:
    import pyarrow as pa

    buffers = [None, pa.py_buffer(ends), pa.py_buffer(characters)]
    return pa.Array.from_buffers(pa.large_string(), len(ends) - 1, buffers)
