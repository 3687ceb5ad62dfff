"""A few of many images, drawn by the seed and spread over their classes: the same few on every machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mlx_tasks.data.splits import class_quotas
from mlx_tasks.data.text import seeded_choice


def drawn_subset(names: Sequence[str], classes: Sequence[str | None], count: int, seed: int) -> list[int]:
    """The places, rising, of `count` of the images; all where there are no more.

    A class's share is its share of the whole, rounded by largest remainder. Inside a class images stand in the order of
    a hash of (seed, name), so the order of the list changes nothing, and `count` + 1 images hold nearly all of `count`.
    """
    if count >= len(names):
        return list(range(len(names)))
    members: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(classes):
        members[name or ""].append(place)
    shares = class_quotas({name: len(members[name]) for name in sorted(members)}, count, seed)
    chosen = []
    for name, share in shares.items():
        chosen += sorted(members[name], key=lambda place: (seeded_choice(seed, names[place]), names[place]))[:share]
    return sorted(chosen)
