"""What a multistep solver remembers: the last model outputs, each with the noise level it was made at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx


class History(NamedTuple):
    """State of a multistep solver.

    Attributes:
        sigmas: the whole grid, so that a solver knows how far it is from its end.
        index: intervals that have been taken.
        past: (sigma, output), newest first.
    """

    sigmas: tuple[float, ...]
    index: int = 0
    past: tuple[tuple[float, mx.array], ...] = ()

    @classmethod
    def start(cls, sigmas: Sequence[float]) -> History:
        """Nothing yet, on a grid."""
        return cls(tuple(float(sigma) for sigma in sigmas))

    @property
    def left(self) -> int:
        """Intervals still to take, the coming one included."""
        return len(self.sigmas) - 1 - self.index

    def add(self, sigma: float, output: mx.array, keep: int) -> History:
        """One more output in front; the oldest beyond `keep` are forgotten."""
        return self._replace(past=((sigma, output), *self.past)[:keep])

    def advance(self) -> History:
        """One interval further."""
        return self._replace(index=self.index + 1)
