"""Train, validation and test: stratified, seeded, near duplicates together, and stable when images are added."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from mlx_tasks.data.text import seeded_choice
from mlx_tasks.errors import DataError

HELD_OUT = ("test", "validation")
"""Filled in this order; what is left is train."""


@dataclass(frozen=True)
class Member:
    """What the split of one image depends on.

    Attributes:
        key: the image's own name in the draw, wherever it stands in the list (its pixels' hash).
        stratum: its class, or "" without labels.
        group: its near-duplicate group.
        given: train, validation or test where the source says so, else None.
    """

    key: str
    stratum: str
    group: int
    given: str | None = None


@dataclass(frozen=True)
class Assignment:
    """The split of each image.

    Attributes:
        splits: N of train, validation, test.
        moved: images that would stand in another split if they had no near duplicate.
    """

    splits: list[str]
    moved: int


def assign_splits(members: list[Member], fractions: dict[str, float], seed: int) -> Assignment:
    """Splits of N images.

    A near-duplicate group is drawn as one. Inside a class, groups stand in the order of a hash of (seed, smallest key
    of the group); test takes from the front until its quota of images is full, then validation, and train the rest.
    A class's quota is its share rounded by largest remainder, so the totals are the whole set's share rounded, and
    each class keeps at least one group in train. An added image changes the split of only those few at a quota's
    border, and the order of the list changes nothing.
    Splits that the source gives hold; a held-out one that it lacks is carved out of its train by its fraction of the
    whole, and a group that spans several moves entirely to train, or without a train member to validation.
    fractions: {"test": f, "validation": f}.
    Raises: DataError where a class has no image in train, or a held-out split stays empty.
    """
    splits = _assign(members, fractions, seed)
    alone = _assign([replace(member, group=i) for i, member in enumerate(members)], fractions, seed)
    sizes = Counter(member.group for member in members)
    moved = sum(
        sizes[member.group] > 1 and together != apart
        for member, together, apart in zip(members, splits, alone, strict=True)
    )
    _check(members, splits)
    return Assignment(splits, moved)


def _assign(members: list[Member], fractions: dict[str, float], seed: int) -> list[str]:
    groups: dict[int, list[Member]] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    chosen = {group: _given_split(rows) for group, rows in groups.items()}
    given = {member.given for member in members}
    missing = {split: fractions[split] for split in HELD_OUT if split not in given}
    open_groups = {group: rows for group, rows in groups.items() if {row.given for row in rows} <= {None, "train"}}
    chosen |= _draw(open_groups, missing, len(members), seed)
    return [chosen[member.group] for member in members]


def _given_split(rows: list[Member]) -> str:
    """The source's split of a group; train where it gives none."""
    given = {row.given for row in rows} - {None}
    return next((split for split in ("train", "validation", "test") if split in given), "train")


def _by_class(groups: dict[int, list[Member]]) -> dict[str, list[int]]:
    """The groups of each class; a group of several classes counts for its commonest."""
    classes: dict[str, list[int]] = {}
    for group, rows in groups.items():
        counts = Counter(row.stratum for row in rows)
        classes.setdefault(min(counts, key=lambda name: (-counts[name], name)), []).append(group)
    return classes


def _draw(groups: dict[int, list[Member]], fractions: dict[str, float], total: int, seed: int) -> dict[int, str]:
    """The held-out splits of open groups: {group: split}; a group left out stays in train."""
    classes = _by_class(groups)
    sizes = {group: len(rows) for group, rows in groups.items()}
    keys = {group: min(row.key for row in rows) for group, rows in groups.items()}
    counts = {name: sum(sizes[group] for group in members) for name, members in classes.items()}
    quotas = {split: _quotas(counts, round(fraction * total), seed) for split, fraction in fractions.items()}
    chosen: dict[int, str] = {}
    for name, members in classes.items():
        members = sorted(members, key=lambda group: (seeded_choice(seed, keys[group]), keys[group]))
        room = {split: quota[name] for split, quota in quotas.items()}
        for group in members:
            split = next((split for split, left in room.items() if left >= sizes[group]), None)
            if split is not None:
                chosen[group] = split
                room[split] -= sizes[group]
        if all(group in chosen for group in members):
            del chosen[members[-1]]
    return _with_every_class(groups, chosen)


def _with_every_class(groups: dict[int, list[Member]], chosen: dict[int, str]) -> dict[int, str]:
    """`chosen` less the groups that held the only images of a class (possible where groups mix classes)."""
    learned = {row.stratum for group, rows in groups.items() if group not in chosen for row in rows}
    for group in sorted(chosen, key=lambda group: min(row.key for row in groups[group])):
        if not {row.stratum for row in groups[group]} <= learned:
            learned |= {row.stratum for row in groups[group]}
            del chosen[group]
    return chosen


def _quotas(counts: dict[str, int], target: int, seed: int) -> dict[str, int]:
    """`target` images shared out over the classes in proportion to their counts, by largest remainder (Hamilton)."""
    whole = max(1, sum(counts.values()))
    exact = {name: target * count / whole for name, count in counts.items()}
    quotas = {name: math.floor(share) for name, share in exact.items()}
    spare = target - sum(quotas.values())
    by_remainder = sorted(counts, key=lambda name: (quotas[name] - exact[name], seeded_choice(seed, name)))
    for name in by_remainder[: max(0, spare)]:
        quotas[name] += 1
    return quotas


def _check(members: list[Member], splits: list[str]) -> None:
    learned = {member.stratum for member, split in zip(members, splits, strict=True) if split == "train"}
    absent = sorted({member.stratum for member in members} - learned)
    if absent:
        raise DataError(
            f"every class must be in train; {len(absent)} are only in the source's held-out folders "
            f"({', '.join(map(repr, absent[:5]))}): move some of their images, or drop the split folders"
        )
    for split in HELD_OUT:
        if split not in splits:
            raise DataError(
                f"the {split} split is empty with {len(members)} images: add images, raise data.{split}_fraction, "
                "or remove near duplicates (data.duplicate_distance)"
            )
