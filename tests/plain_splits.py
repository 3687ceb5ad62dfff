"""Splits as docs/data.md says them, image by image in dicts and lists: what splits.py must agree with."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from mlx_tasks.data.splits import HELD_OUT, Members, class_quotas
from mlx_tasks.data.text import seeded_choice


class Member(NamedTuple):
    """One image: its key in the draw, its class, its near-duplicate group, the split that the source gives."""

    key: str
    stratum: str
    group: int
    given: str | None = None


def columns(members: list[Member], seed: int) -> Members:
    """The same as columns."""
    names = sorted({member.stratum for member in members})
    _, ranks = np.unique([member.key for member in members], return_inverse=True)
    return Members(
        ranks=ranks,
        draws=np.array([seeded_choice(seed, member.key) for member in members], np.uint64),
        strata=np.array([names.index(member.stratum) for member in members]),
        names=names,
        groups=np.array([member.group for member in members]),
        given=np.array([[None, "train", "validation", "test"].index(m.given) - 1 for m in members], np.int8),
    )


def plain_splits(members: list[Member], fractions: dict[str, float], seed: int) -> list[str]:
    """N of train, validation, test."""
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
    given = {row.given for row in rows} - {None}
    return next((split for split in ("train", "validation", "test") if split in given), "train")


def _by_class(groups: dict[int, list[Member]]) -> dict[str, list[int]]:
    classes: dict[str, list[int]] = {}
    for group, rows in groups.items():
        counts = Counter(row.stratum for row in rows)
        classes.setdefault(min(counts, key=lambda name: (-counts[name], name)), []).append(group)
    return classes


def _draw(groups: dict[int, list[Member]], fractions: dict[str, float], total: int, seed: int) -> dict[int, str]:
    classes = _by_class(groups)
    sizes = {group: len(rows) for group, rows in groups.items()}
    keys = {group: min(row.key for row in rows) for group, rows in groups.items()}
    counts = {name: sum(sizes[group] for group in members) for name, members in classes.items()}
    quotas = {split: class_quotas(counts, round(fraction * total), seed) for split, fraction in fractions.items()}
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
    learned = {row.stratum for group, rows in groups.items() if group not in chosen for row in rows}
    for group in sorted(chosen, key=lambda group: min(row.key for row in groups[group])):
        if not {row.stratum for row in groups[group]} <= learned:
            learned |= {row.stratum for row in groups[group]}
            del chosen[group]
    return chosen
