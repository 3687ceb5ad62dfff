"""Every candidate looked at once: decoded, measured, cut to each resolution; in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from mlx_tasks.data.children import Bounds, Lost, in_children
from mlx_tasks.data.decode import Decoded, Rules, decode_array, decode_file
from mlx_tasks.data.listing import Candidate
from mlx_tasks.data.measures import Look, brightness, look, sharpness, square
from mlx_tasks.data.reasons import Refusal

FEWEST_FOR_PROCESSES = 4000
"""Images below which starting more processes than one costs more than they save."""

MEMORY_BYTES = 2**30
MEMORY_PER_PIXEL = 48
"""What a decoding process may hold: this much, and so many bytes for each pixel of data.max_pixels (docs/data.md)."""


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

    Files are decoded in child processes, because a damaged one may take its decoder down: a few in one child, many in
    as many as `workers`. A few pictures that are in memory already have no decoder, and are done here.
    channels: auto, grey or rgb, as `data.channels`.
    """
    look = partial(inspect_one, rules=rules, resolutions=resolutions, channels=channels)
    many = len(candidates) >= FEWEST_FOR_PROCESSES
    if not many and all(candidate.file is None for candidate in candidates):
        yield from map(look, candidates)
        return
    for seen in in_children(look, _Bare(candidates), max(1, workers) if many else 1, bounds(rules)):
        yield Inspected("corrupt", f"decoding was given up: {seen.why}") if isinstance(seen, Lost) else seen


def bounds(rules: Rules) -> Bounds:
    """What decoding one image may take under these rules."""
    return Bounds(MEMORY_BYTES + MEMORY_PER_PIXEL * rules.max_pixels)


class _Bare(Sequence[Candidate]):
    """Candidates without the texts that looking at them does not need: captions may be long, and go through a pipe."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates

    def __len__(self) -> int:
        return len(self._candidates)

    def __getitem__(self, row):  # type: ignore[override]
        return replace(self._candidates[row], label=None, caption=None)


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
