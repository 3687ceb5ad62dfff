"""The manifest: one row per image that the source offers, accepted or refused."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.data.columns import Categories, digest_ranks, hex_texts, taken
from mlx_tasks.data.duplicates import duplicate_groups
from mlx_tasks.data.listing import Listing
from mlx_tasks.data.loader import SPLITS
from mlx_tasks.data.measures import Looks
from mlx_tasks.data.records import Records
from mlx_tasks.data.sources import Source
from mlx_tasks.data.splits import Assignment, Members, assign_splits
from mlx_tasks.data.text import seeded_choice

if TYPE_CHECKING:
    import pandas as pd

QUARANTINE = "quarantine"
_BLOCK = 1 << 16
COLUMNS = (
    "index path sha256 pixels_sha256 width height mode bytes label class_index caption brightness sharpness "
    "duplicate_group split reason detail converted"
).split()
"""The manifest's columns; docs/data.md says what each means."""


def refuse_contradicted(listing: Listing, records: Records) -> None:
    """Refuse images whose very pixels stand elsewhere under another label: which is right?"""
    rows = records.accepted()
    codes, pixels = listing.labels.codes[rows], digest_ranks(records.pixels_sha256[rows])
    label = np.zeros(len(rows), np.int32)
    label[pixels] = codes  # one of each picture's labels
    unlike = np.unique(pixels[label[pixels] != codes])
    places = np.flatnonzero(np.isin(pixels, unlike))
    first: dict[int, dict[str, str]] = defaultdict(dict)
    for place in places:
        if (name := listing.labels[rows[place]]) is not None:
            first[pixels[place]].setdefault(name, listing.paths[rows[place]])
    for place in places:
        name, found = listing.labels[rows[place]], first[pixels[place]]
        if len(found) > 1:
            other, path = next(item for item in found.items() if item[0] != name)
            records.refusals[int(rows[place])] = (
                "bad_label",
                f"{name!r} here and {other!r} at {path}: the same pixels",
            )


def class_names(source: Source, labels: list[str | None]) -> list[str]:
    """The classes of accepted images, in the card's order, else sorted (by value where all are whole numbers)."""
    present = {label for label in labels if label is not None}
    if source.class_order:
        return [name for name in source.class_order if name in present]
    if all(name.lstrip("-").isdecimal() for name in present):
        return sorted(present, key=lambda name: (int(name), name))
    return sorted(present)


def build_manifest(
    source: Source, records: Records, distance: int, fractions: dict[str, float], seed: int
) -> tuple[pd.DataFrame, Assignment, np.ndarray]:
    """The manifest, the split assignment, and the order in which accepted candidates stand in the arrays.

    Rows keep the source's order. `index` counts accepted images split by split (train, validation, test), so that each
    split is one stretch of the arrays.  distance: near-duplicate bits.  fractions: of validation and test.
    The records' looks are dropped once the groups are known.
    Returns: (frame of N rows, splits of the accepted, (accepted,) positions in the source's list).
    Raises: DataError as `assign_splits`.
    """
    listing, accepted = source.candidates, records.accepted()
    names = class_names(source, present_labels(listing, accepted))
    ranks = digest_ranks(records.pixels_sha256[accepted])
    groups = duplicate_groups(ranks, Looks(*(column[accepted] for column in records.looks)), distance)
    records.looks = Looks.empty(0)
    strata, strata_names = _strata(listing, accepted)
    assignment = assign_splits(
        Members(
            ranks=ranks,
            draws=_draws(records.pixels_sha256, accepted, seed),
            strata=strata,
            names=strata_names,
            groups=groups,
            given=listing.given[accepted],
        ),
        fractions,
        seed,
    )
    order = np.argsort(assignment.codes, kind="stable")
    return _frame(listing, records, accepted, names, groups, assignment.codes, order), assignment, accepted[order]


def present_labels(listing: Listing, rows: np.ndarray) -> list[str | None]:
    """The different labels of these rows."""
    return [listing.labels.values[code] for code in np.unique(listing.labels.codes[rows])]


def _strata(listing: Listing, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(the class of each row as a place in the names, the names sorted); no label is ""."""
    names = sorted({value or "" for value in listing.labels.values})
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[value or ""] for value in listing.labels.values])[listing.labels.codes[rows]], names


def _draws(digests: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """(len(rows),) uint64, `seeded_choice` of each digest in hex."""
    numbers = (seeded_choice(seed, digests[row].tobytes().hex()) for row in rows)
    return np.fromiter(numbers, np.uint64, len(rows))


def _frame(
    listing: Listing,
    records: Records,
    accepted: np.ndarray,
    names: list[str],
    groups: np.ndarray,
    splits: np.ndarray,
    order: np.ndarray,
) -> pd.DataFrame:
    """The manifest's rows.  accepted: rows; groups, splits: of these; order: of these, in the arrays."""
    import pandas as pd
    import pyarrow as pa

    index, split, group = (np.full(len(records), missing) for missing in (-1, len(SPLITS), -1))
    index[accepted[order]] = np.arange(len(order))
    split[accepted] = splits
    group[accepted] = groups
    position = {name: number for number, name in enumerate(names)}
    classes = np.array([position.get(value or "", -1) for value in listing.labels.values])[listing.labels.codes]
    reasons, details = Categories(), Categories()
    for row in range(len(records)):
        reason, detail = records.refusals.get(row, ("", ""))
        reasons.append(reason)
        details.append(detail)
    labels = listing.labels.arrow()
    columns = {
        "index": index,
        "path": listing.paths.arrow(),
        "sha256": hex_texts(records.sha256, records.decoded),
        "pixels_sha256": hex_texts(records.pixels_sha256, records.decoded),
        "width": records.width.astype(np.int64),
        "height": records.height.astype(np.int64),
        "mode": records.mode.arrow(),
        "bytes": records.size_bytes,
        "label": np.full(len(labels), None) if labels.null_count == len(labels) else labels,
        "class_index": np.where(split < len(SPLITS), classes, -1),
        "caption": listing.captions.arrow(),
        "brightness": records.brightness,
        "sharpness": records.sharpness,
        "duplicate_group": group,
        "split": taken([*SPLITS, QUARANTINE], split),
        "reason": reasons.arrow(),
        "detail": details.arrow(),
        "converted": records.converted.arrow(),
    }
    text = pd.StringDtype(na_value=np.nan)  # pandas' own `str`, kept by Arrow
    series = {
        name: pd.Series(column, dtype=text) if isinstance(column, pa.Array) else pd.Series(column, range(len(records)))
        for name, column in columns.items()
    }
    return pd.DataFrame(series, columns=pd.Index(COLUMNS), copy=False)


def accepted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the refused images."""
    accepted = frame["index"].to_numpy() >= 0
    return frame if accepted.all() else frame.loc[accepted]


def fingerprint(frame: pd.DataFrame) -> str:
    """SHA-256 of what the accepted images are (pixels, label, caption, split), whatever their names and order."""
    digest = hashlib.sha256()
    # All lines sorted, and never all at once: rows by their pixels, and only those of equal pixels by the whole line.
    lines = _lines(accepted_rows(frame), ["pixels_sha256", "label", "caption", "split"])
    for _, same in groupby(lines, key=lambda line: line[: line.index("\t")]):
        for line in sorted(same):
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _lines(rows: pd.DataFrame, columns: list[str]) -> Iterator[str]:
    """The rows' texts with tabs between, in the order of the first column."""
    import pyarrow as pa
    import pyarrow.compute as compute

    order = compute.call_function("sort_indices", [pa.array(rows[columns[0]])]).to_numpy()
    for begin in range(0, len(order), _BLOCK):
        block = [rows[column].iloc[order[begin : begin + _BLOCK]] for column in columns]
        yield from ("\t".join(_text(value) for value in row) for row in zip(*block, strict=True))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def count_by(values: Any) -> dict[str, int]:
    """{value: how often}, most frequent first, ties by name."""
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[str(value)] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
