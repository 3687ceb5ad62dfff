"""What reading a folder found, put into lines: counts, sources of labels and captions, what lay beside."""

from __future__ import annotations

from collections import Counter

from mlx_tasks.data.beside import MAX_BYTES, Beside
from mlx_tasks.data.layout import Layout
from mlx_tasks.data.listing import Listing
from mlx_tasks.data.metadata import Metadata, ignored_lines
from mlx_tasks.data.oddities import odd_lines
from mlx_tasks.data.told import Told, counted, counts, some
from mlx_tasks.data.tree import Tree

LONG_CAPTION = 96
"""Bytes of a caption that the built-in image-text model reads where it need not read more."""


def tell(
    tree: Tree,
    layout: Layout,
    metadata: Metadata,
    beside: Beside,
    listing: Listing,
    aside: dict[str, int],
    by_folder: bool,
) -> Told:
    """The lines.  aside: folders passed over, with their pictures; by_folder: labels come from the folders."""
    labels = Counter({name: int(count) for name, count in _label_counts(listing).items()})
    found = [_pictures(tree, labels, by_folder), *_captions(metadata, beside, listing), _splits(layout, aside)]
    passed = [counts(tree.passed_over)] if tree.passed_over else []
    passed += [f"{counted(count, 'caption file')} {why}" for why, count in beside.unlike.items()]
    passed += _no_captions(tree, beside, bool(metadata.files) or bool(labels))
    passed += ignored_lines(metadata, bool(beside.read))
    lacks = "label" if labels else "caption"
    passed += [
        f"{counted(count, 'image')} of {name}/, none of which has a {lacks}, as the others have: to use them, give "
        "them class folders, captions or a metadata file"
        for name, count in aside.items()
    ]
    return Told(
        found, passed, [*layout.odd, *_lost_captions(beside), *odd_lines(tree, metadata, listing, labels, by_folder)]
    )


def _label_counts(listing: Listing) -> dict[str, int]:
    numbers = Counter(listing.labels.codes.tolist())
    return {name: numbers[code] for code, name in enumerate(listing.labels.values) if name is not None}


def _pictures(tree: Tree, labels: Counter[str], by_folder: bool) -> str:
    images = counted(len(tree.paths), "image")
    if not labels:
        return f"{images}, no classes"
    source = "the folders' names" if by_folder else "the metadata"
    return f"{images}, {counted(len(labels), 'class', 'classes')} by {source}: {_classes(labels)}"


def _classes(labels: Counter[str]) -> str:
    return some([f"{name} {count}" for name, count in labels.most_common()], 8)


def _captions(metadata: Metadata, beside: Beside, listing: Listing) -> list[str]:
    lines = [f"{name}: rows about images, by the columns {columns}" for name, columns in metadata.files.items()]
    written = {name: count for name, count in beside.read.items() if name != "empty"}
    if written:
        lines.append(f"captions beside the images: {counts(written)}")
    longest, empty = _lengths(listing)
    if (written or metadata.files) and empty:
        lines.append(f"{counted(empty, 'image')} with an empty caption, as given (data.max_uncaptioned)")
    if longest > LONG_CAPTION:
        over = int((listing.captions.sizes() > LONG_CAPTION).sum())
        lines.append(
            f"{counted(over, 'caption')} of more than {LONG_CAPTION} bytes, the longest of {longest}: kept whole, "
            "and the built-in image-text score may read the beginning alone (docs/metrics.md)"
        )
    return lines


def _lost_captions(beside: Beside) -> list[str]:
    if not beside.lost:
        return []
    first = next(iter(beside.lost))
    return [
        f"captions that cannot be read, for example that of {first}: save them as text in UTF-8, of at most "
        f"{MAX_BYTES >> 10} KB"
    ]


def _no_captions(tree: Tree, beside: Beside, told: bool) -> list[str]:
    """Why text files say nothing, where nothing else says anything either."""
    if told or beside.read.total() > beside.read["empty"]:
        return []
    if beside.read["empty"] and not beside.unlike:
        return [f"{counted(beside.read['empty'], 'caption file')} without text: no image has a caption"]
    if tree.stray:
        return [
            f"texts that lie beside no image of their name ({', '.join(tree.stray)}, ...): the caption of 1.png is "
            "1.txt in the same folder; rows about many images are a .csv, .tsv, .jsonl or .parquet"
        ]
    return []


def _lengths(listing: Listing) -> tuple[int, int]:
    """(bytes of the longest caption, pictures that are offered with an empty one where others have one)."""
    sizes = listing.captions.sizes()
    usable = [row for row in (sizes == 0).nonzero()[0].tolist() if not listing.problem(row)]
    return int(sizes.max(initial=0)), len(usable) if sizes.any() else 0


def _splits(layout: Layout, aside: dict[str, int]) -> str:
    given = sorted({split for folder, split in layout.splits.items() if split and folder not in aside})
    if not given:
        return "no split folders: divided by the seed"
    taken = [split for split in ("validation", "test") if split not in given]
    return f"split folders: {', '.join(given)}" + (f"; {' and '.join(taken)} taken from train" if taken else "")
