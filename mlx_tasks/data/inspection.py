"""Every candidate looked at once: decoded, measured, cut to each resolution; in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from mlx_tasks.data.decode import Decoded, Rules, decode_array, decode_file
from mlx_tasks.data.measures import Look, brightness, look, sharpness, square
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.sources import Candidate

_AHEAD = 4
"""Images in flight for each worker: enough to keep it busy, few enough that large pictures do not pile up."""


@dataclass(frozen=True)
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
    candidates: Iterable[Candidate], rules: Rules, resolutions: tuple[int, ...], channels: str, workers: int
) -> Iterator[Inspected]:
    """What each candidate gave, in their order.

    Threads, not processes: decoding, hashing and resizing happen in C with the interpreter's lock released, nothing has
    to be copied between processes, and none is left behind when the stage is killed (benchmarks/manifest_speed.py).
    channels: auto, grey or rgb, as `data.channels`.  workers: threads; 1 decodes in the caller's own.
    """
    if workers <= 1:
        yield from (inspect_one(candidate, rules, resolutions, channels) for candidate in candidates)
        return
    remaining = iter(candidates)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        pending: deque[Future[Inspected]] = deque()
        try:
            while True:
                for candidate in islice(remaining, workers * _AHEAD - len(pending)):
                    pending.append(pool.submit(inspect_one, candidate, rules, resolutions, channels))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


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
