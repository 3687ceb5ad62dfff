"""Every candidate looked at once: decoded, measured, cut to each resolution; in order, in bounded memory."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np

from mlx_tasks.data.decode import Decoded, Rules, decode_array, decode_file
from mlx_tasks.data.listing import Candidate
from mlx_tasks.data.measures import Look, brightness, look, sharpness, square
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.errors import OutOfMemoryError

FEWEST_FOR_PROCESSES = 4000
"""Images below which starting processes costs more than they save."""

_CHUNK = 8
_AHEAD = 16
"""Chunks in flight: enough to keep the processes busy, few enough that large squares do not pile up."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What looking at one candidate gave.

    Attributes:
        reason: why it is refused, a key of REASONS; empty where it is fine.
        detail: the value that broke the rule.
        width, height: pixels, upright; from the header, so also where decoding failed after it; else 0.
        mode, size_bytes, sha256, pixels_sha256, converted: as Decoded; empty or 0 where refused.
        brightness, sharpness, look: as measures.py; None where refused, and for the look where the image is flat.
        grey: every pixel is.
        squares: {resolution: (R, R, 1 or 3) uint8}, one channel where the image is grey.
    """

    reason: str = ""
    detail: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    size_bytes: int = 0
    sha256: str = ""
    pixels_sha256: str = ""
    converted: str = ""
    brightness: float | None = None
    sharpness: float | None = None
    look: Look | None = None
    grey: bool = False
    squares: dict[int, np.ndarray] = field(default_factory=dict)


def inspect_all(
    candidates: Sequence[Candidate], rules: Rules, resolutions: tuple[int, ...], channels: str, workers: int
) -> Iterator[Inspected]:
    """What each candidate gave, in their order, holding about a hundred at most.

    Many images go to processes: over half of the work on a small one is Python, which threads cannot share. They are
    spawned, take a second to start, and stop by themselves when this process is gone. Fewer are done here.
    channels: auto, grey or rgb, as `data.channels`.  workers: processes.
    Raises: OutOfMemoryError where a process is killed.
    """
    look = partial(inspect_one, rules=rules, resolutions=resolutions, channels=channels)
    if workers <= 1 or len(candidates) < FEWEST_FOR_PROCESSES:
        yield from map(look, candidates)
        return
    chunks = (candidates[begin : begin + _CHUNK] for begin in range(0, len(candidates), _CHUNK))
    with ProcessPoolExecutor(workers, get_context("spawn"), _stop_with_parent, (os.getpid(),)) as pool:
        pending: deque[Future[list[Inspected]]] = deque()
        try:
            while True:
                pending.extend(
                    pool.submit(_inspect_chunk, look, chunk) for chunk in islice(chunks, _AHEAD - len(pending))
                )
                if not pending:
                    return
                yield from pending.popleft().result()
        except BrokenProcessPool:
            raise OutOfMemoryError(
                "a decoding process was killed; if memory ran out, lower data.max_pixels or MLX_TASKS_THREADS"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _inspect_chunk(look: Callable[[Candidate], Inspected], chunk: Sequence[Candidate]) -> list[Inspected]:
    return [look(candidate) for candidate in chunk]


def _stop_with_parent(parent: int) -> None:
    """End this process when its parent is gone: one that waits for work would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def inspect_one(candidate: Candidate, rules: Rules, resolutions: tuple[int, ...], channels: str) -> Inspected:
    """What one candidate gave; a refusal is a value here, not an exception."""
    try:
        if candidate.problem is not None:
            raise Refusal(*candidate.problem)
        decoded = decode_candidate(candidate, rules)
    except Refusal as refusal:
        return Inspected(refusal.reason, refusal.detail, refusal.width, refusal.height)
    image = decoded.image
    grey = image.mode == "L"
    width = 1 if channels == "grey" or grey else 3
    return Inspected(
        width=image.width,
        height=image.height,
        mode=decoded.mode,
        size_bytes=decoded.size_bytes,
        sha256=decoded.sha256,
        pixels_sha256=decoded.pixels_sha256,
        converted=decoded.converted,
        brightness=brightness(image),
        sharpness=sharpness(image),
        look=look(image),
        grey=grey,
        squares={resolution: square(image, resolution, width) for resolution in resolutions},
    )


def decode_candidate(candidate: Candidate, rules: Rules) -> Decoded:
    """The candidate's image.  Raises: Refusal."""
    if candidate.pixels is not None:
        return decode_array(candidate.pixels, rules)
    assert candidate.file is not None, candidate.path
    return decode_file(candidate.file, rules)
