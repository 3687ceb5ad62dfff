"""Memory of a training: how many images go through the network at once, and what running out looks like."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

import mlx.core as mx

from mlx_tasks.errors import DataError, OutOfMemoryError

MICRO_BATCH_VARIABLE = "MLX_TASKS_MICRO_BATCH"

_EXHAUSTED = re.compile(r"out of memory|unable to allocate|bad_alloc|attempting to allocate|insufficient memory", re.I)
"""What MLX's allocators say: Metal's buffer limit, CUDA's, and the C++ heap's."""


def micro_batch_limit(hardware_limit: int, environment: Mapping[str, str] = os.environ) -> int:
    """Images of one forward and backward pass: the hardware's limit, or less where a retry asks for less.

    Raises: DataError if MLX_TASKS_MICRO_BATCH is no whole number of at least 1.
    """
    asked = environment.get(MICRO_BATCH_VARIABLE)
    if not asked:
        return hardware_limit
    if not asked.isdigit() or int(asked) < 1:
        raise DataError(f"{MICRO_BATCH_VARIABLE} must be a whole number of at least 1, got {asked!r}: unset it")
    return min(hardware_limit, int(asked))


def peak_memory_mb() -> float:
    """Most memory MLX's arrays held since the last reset (MiB)."""
    return mx.get_peak_memory() / 2**20


@contextlib.contextmanager
def memory_errors(micro_batch: int) -> Iterator[None]:
    """Raise OutOfMemoryError for whatever MLX raises when an allocation fails; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _EXHAUSTED.search(str(error)):
            raise
        raise OutOfMemoryError(
            f"out of memory with {micro_batch} images at once ({peak_memory_mb():.0f} MiB at the peak): {error}; "
            f"set {MICRO_BATCH_VARIABLE}={max(1, micro_batch // 2)} and run the stage again"
        ) from error
