"""The manifest: one row per image that the source offers, accepted or refused."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.data.duplicates import duplicate_groups
from mlx_tasks.data.inspection import Inspected
from mlx_tasks.data.loader import SPLITS
from mlx_tasks.data.sources import Candidate, Source
from mlx_tasks.data.splits import Assignment, Member, assign_splits

if TYPE_CHECKING:
    import pandas as pd

QUARANTINE = "quarantine"
COLUMNS = (
    "index path sha256 pixels_sha256 width height mode bytes label class_index caption brightness sharpness "
    "duplicate_group split reason detail converted"
).split()
"""The manifest's columns; docs/data.md says what each means."""


def contradicted(candidates: list[Candidate], inspected: list[Inspected]) -> list[Inspected]:
    """`inspected`, with images refused whose very pixels stand elsewhere under another label: which is right?"""
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for candidate, seen in zip(candidates, inspected, strict=True):
        if not seen.reason and candidate.label is not None:
            labels[seen.pixels_sha256].setdefault(candidate.label, candidate.path)
    checked = []
    for candidate, seen in zip(candidates, inspected, strict=True):
        if not seen.reason and len(labels[seen.pixels_sha256]) > 1:
            other, path = next(item for item in labels[seen.pixels_sha256].items() if item[0] != candidate.label)
            seen = replace(
                seen, reason="bad_label", detail=f"{candidate.label!r} here and {other!r} at {path}: the same pixels"
            )
        checked.append(seen)
    return checked


def class_names(source: Source, labels: list[str | None]) -> list[str]:
    """The classes of accepted images, in the card's order, else sorted (by value where all are whole numbers)."""
    present = {label for label in labels if label is not None}
    if source.class_order:
        return [name for name in source.class_order if name in present]
    if all(name.lstrip("-").isdecimal() for name in present):
        return sorted(present, key=lambda name: (int(name), name))
    return sorted(present)


def build_manifest(
    source: Source, inspected: list[Inspected], distance: int, fractions: dict[str, float], seed: int
) -> tuple[pd.DataFrame, Assignment, np.ndarray]:
    """The manifest, the split assignment, and the order in which accepted candidates stand in the arrays.

    Rows keep the source's order. `index` counts accepted images split by split (train, validation, test), so that each
    split is one stretch of the arrays.  distance: near-duplicate bits.  fractions: of validation and test.
    Returns: (frame of N rows, splits of the accepted, (accepted,) positions in the source's list).
    Raises: DataError as `assign_splits`.
    """
    import pandas as pd

    candidates = source.candidates
    accepted = [i for i, seen in enumerate(inspected) if not seen.reason]
    names = class_names(source, [candidates[i].label for i in accepted])
    positions = {name: number for number, name in enumerate(names)}
    groups = duplicate_groups(
        [inspected[i].pixels_sha256 for i in accepted], [inspected[i].look for i in accepted], distance
    )
    assignment = assign_splits(
        [
            Member(inspected[i].pixels_sha256, candidates[i].label or "", int(group), candidates[i].given_split)
            for i, group in zip(accepted, groups, strict=True)
        ],
        fractions,
        seed,
    )
    ranks = np.array([SPLITS.index(split) for split in assignment.splits])
    order = np.argsort(ranks, kind="stable")
    index_of = {accepted[position]: index for index, position in enumerate(order)}
    place = {i: k for k, i in enumerate(accepted)}
    rows = []
    for i, (candidate, seen) in enumerate(zip(candidates, inspected, strict=True)):
        k = place.get(i)
        rows.append(
            (
                index_of.get(i, -1),
                candidate.path,
                seen.sha256,
                seen.pixels_sha256,
                seen.width,
                seen.height,
                seen.mode,
                seen.size_bytes,
                candidate.label,
                positions.get(candidate.label or "", -1) if k is not None else -1,
                candidate.caption or "",
                seen.brightness,
                seen.sharpness,
                -1 if k is None else int(groups[k]),
                QUARANTINE if k is None else assignment.splits[k],
                seen.reason,
                seen.detail,
                seen.converted,
            )
        )
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"brightness": "float64", "sharpness": "float64"})
    return frame, assignment, np.array(accepted, np.int64)[order]


def accepted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the refused images."""
    return frame.loc[frame["index"].to_numpy() >= 0]


def fingerprint(frame: pd.DataFrame) -> str:
    """SHA-256 of what the accepted images are (pixels, label, caption, split), whatever their names and order."""
    digest = hashlib.sha256()
    accepted = accepted_rows(frame)
    columns = [accepted[name] for name in ("pixels_sha256", "label", "caption", "split")]
    for line in sorted("\t".join(_text(value) for value in row) for row in zip(*columns, strict=True)):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def count_by(values: Any) -> dict[str, int]:
    """{value: how often}, most frequent first, ties by name."""
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[str(value)] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
