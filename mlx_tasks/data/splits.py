"""Train, validation and test: stratified, seeded, near duplicates together, and stable when images are added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlx_tasks.data.columns import by_first_appearance
from mlx_tasks.data.loader import SPLITS
from mlx_tasks.data.text import seeded_choice
from mlx_tasks.errors import DataError

HELD_OUT = ("test", "validation")
"""Filled in this order; what is left is train."""

_TRAIN = SPLITS.index("train")


class Members(NamedTuple):
    """What the splits of N images depend on.

    Attributes:
        ranks: (N,) int64, the place of the image's key (its pixels' hash) among all; equal for equal keys.
        draws: (N,) uint64, `seeded_choice` of the image's key: where it stands in the draw, wherever in the list.
        strata: (N,) integers, places in `names`.
        names: the classes, sorted; "" without labels.
        groups: (N,) integers, the near-duplicate group.
        given: (N,) int8, the place in SPLITS of the split that the source gives, else -1.
    """

    ranks: np.ndarray
    draws: np.ndarray
    strata: np.ndarray
    names: list[str]
    groups: np.ndarray
    given: np.ndarray


@dataclass(frozen=True)
class Assignment:
    """The split of each image.

    Attributes:
        codes: (N,) int8, places in SPLITS.
        moved: images that would stand in another split if they had no near duplicate.
    """

    codes: np.ndarray
    moved: int

    @property
    def splits(self) -> list[str]:
        """N of train, validation, test."""
        return [SPLITS[code] for code in self.codes]


def assign_splits(members: Members, fractions: dict[str, float], seed: int) -> Assignment:
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
    codes = _assign(members, fractions, seed)
    alone = _assign(members._replace(groups=np.arange(len(members.groups))), fractions, seed)
    _, group, sizes = np.unique(members.groups, return_inverse=True, return_counts=True)
    moved = np.count_nonzero((sizes[group] > 1) & (codes != alone))
    _check(members, codes)
    return Assignment(codes, int(moved))


def _assign(members: Members, fractions: dict[str, float], seed: int) -> np.ndarray:
    """(N,) int8, places in SPLITS."""
    groups = by_first_appearance(members.groups)
    members = members._replace(groups=groups)
    nothing = len(SPLITS)
    # SPLITS stands in the order in which a group that spans several takes them: train, validation, test.
    chosen = np.full(groups.max() + 1, nothing, np.int8)
    np.minimum.at(chosen, groups, np.where(members.given < 0, nothing, members.given).astype(np.int8))
    chosen[chosen == nothing] = _TRAIN
    held_out = np.zeros(len(chosen), bool)
    held_out[groups[members.given > _TRAIN]] = True
    missing = {split: fractions[split] for split in HELD_OUT if not (members.given == SPLITS.index(split)).any()}
    drawn = _draw(members, ~held_out, missing, seed)
    return np.where(drawn == _TRAIN, chosen, drawn)[groups]


def _draw(members: Members, is_open: np.ndarray, fractions: dict[str, float], seed: int) -> np.ndarray:
    """The splits of open groups: (G,) int8, train where nothing was drawn.  is_open: (G,) bool."""
    drawn = np.full(len(is_open), _TRAIN, np.int8)
    if not is_open.any():
        return drawn
    sizes = np.bincount(members.groups, minlength=len(is_open))
    strata = _strata_of_groups(members, len(is_open))
    first = np.lexsort((members.ranks, members.groups))[np.cumsum(sizes) - sizes]
    ranks, draws = members.ranks[first], members.draws[first]
    open_groups = np.flatnonzero(is_open)
    counts = np.bincount(strata[open_groups], sizes[open_groups], minlength=len(members.names)).astype(np.int64)
    named = {members.names[stratum]: int(counts[stratum]) for stratum in np.flatnonzero(counts)}
    total = len(members.groups)
    quotas = {split: class_quotas(named, round(fraction * total), seed) for split, fraction in fractions.items()}
    order = np.lexsort((ranks[open_groups], draws[open_groups], by_first_appearance(strata[open_groups])))
    ordered = open_groups[order]
    borders = np.flatnonzero(np.diff(strata[ordered])) + 1
    for sequence in np.split(ordered, borders):
        name = members.names[strata[sequence[0]]]
        room = {SPLITS.index(split): quota[name] for split, quota in quotas.items()}
        drawn[sequence] = _fill(sizes[sequence], room)
    return _with_every_class(members, is_open, drawn, ordered[np.argsort(ranks[ordered], kind="stable")])


def _strata_of_groups(members: Members, count: int) -> np.ndarray:
    """The class of each group; one of several classes counts for its commonest, the first by name of equals.  (G,)."""
    classes = len(members.names)
    pairs, often = np.unique(members.groups * classes + members.strata, return_counts=True)
    group, stratum = np.divmod(pairs, classes)
    order = np.lexsort((stratum, -often, group))
    found = np.zeros(count, np.int64)
    found[group[order[::-1]]] = stratum[order[::-1]]  # of several, the last written is the first in order
    return found


def _fill(sizes: np.ndarray, room: dict[int, int]) -> np.ndarray:
    """The splits of one class's groups in the order of the draw; one at least is train.  sizes: (K,) images."""
    filled = np.full(len(sizes), _TRAIN, np.int8)
    for position, size in enumerate(sizes.tolist()):
        if not any(room.values()):
            break
        split = next((split for split, left in room.items() if left >= size), None)
        if split is not None:
            filled[position] = split
            room[split] -= size
    if (filled != _TRAIN).all():
        filled[-1] = _TRAIN
    return filled


def _with_every_class(members: Members, is_open: np.ndarray, drawn: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`drawn` less the groups that held the only images of a class (possible where groups mix classes).

    order: the open groups, in which they are asked.
    """
    learned = np.zeros(len(members.names), bool)
    learned[members.strata[(is_open & (drawn == _TRAIN))[members.groups]]] = True
    lacking = np.flatnonzero(((drawn != _TRAIN)[members.groups]) & ~learned[members.strata])
    if not len(lacking):
        return drawn
    asked = np.zeros(len(drawn), bool)
    asked[members.groups[lacking]] = True
    for group in order[asked[order]]:
        strata = members.strata[members.groups == group]
        if not learned[strata].all():
            learned[strata] = True
            drawn[group] = _TRAIN
    return drawn


def class_quotas(counts: dict[str, int], target: int, seed: int) -> dict[str, int]:
    """`target` images shared out over the classes in proportion to their counts, by largest remainder (Hamilton)."""
    whole = max(1, sum(counts.values()))
    exact = {name: target * count / whole for name, count in counts.items()}
    quotas = {name: math.floor(share) for name, share in exact.items()}
    spare = target - sum(quotas.values())
    by_remainder = sorted(counts, key=lambda name: (quotas[name] - exact[name], seeded_choice(seed, name)))
    for name in by_remainder[: max(0, spare)]:
        quotas[name] += 1
    return quotas


def _check(members: Members, codes: np.ndarray) -> None:
    learned = set(np.unique(members.strata[codes == _TRAIN]).tolist())
    present = set(np.unique(members.strata).tolist())
    absent = sorted(members.names[stratum] for stratum in present - learned)
    if absent:
        raise DataError(
            f"every class must be in train; only in the source's held-out folders: {len(absent)} "
            f"({', '.join(map(repr, absent[:5]))}). Move some of their images, or drop the split folders"
        )
    for split in HELD_OUT:
        if not (codes == SPLITS.index(split)).any():
            single = int(np.count_nonzero(np.bincount(members.strata) == 1))
            groups = len(np.unique(members.groups))
            why = f", of which {single} are alone in their class, and so in train" if single else ""
            why += f", in {groups} group{'s' * (groups != 1)} of near duplicates" if groups < len(codes) else ""
            raise DataError(
                f"the {split} split is empty with {len(codes)} images{why}: add images, raise data.{split}_fraction, "
                "or remove near duplicates (data.duplicate_distance)"
            )
