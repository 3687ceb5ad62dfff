"""How much of a caption the image-text model reads, and whether what it reads tells captions apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WINDOW, WIDEST = 96, 512
"""Bytes that are read of a caption (UTF-8), and the most where captions differ only later."""

MOST_ALIKE = 0.1
"""Share of images above which captions that read like another kind's make the score untrusted."""


def window_for(captions: Sequence[str]) -> int:
    """The narrowest window that keeps as many captions apart as the widest does: `WINDOW` doubled, at most `WIDEST`.

    Never wider than the longest caption, in steps of eight bytes.
    """
    data = {caption.encode("utf-8") for caption in captions}
    longest = -(-max(map(len, data), default=1) // 8) * 8
    apart = len({caption[:WIDEST] for caption in data})
    window = WINDOW
    while window < WIDEST and len({caption[:window] for caption in data}) < apart:
        window *= 2
    return max(8, min(window, WIDEST, longest))


def count_cut(captions: Sequence[str], window: int) -> int:
    """How many captions are longer than the window."""
    return sum(len(caption.encode("utf-8")) > window for caption in captions)


def share_alike(captions: Sequence[str], groups: np.ndarray, window: int) -> float:
    """Share of the captions that read, inside the window, like one of another group.  groups: (N,)."""
    seen: dict[bytes, set[int]] = defaultdict(set)
    cut = [caption.encode("utf-8")[:window] for caption in captions]
    for text, group in zip(cut, groups.tolist(), strict=True):
        seen[text].add(group)
    return sum(len(seen[text]) > 1 for text in cut) / max(1, len(cut))
