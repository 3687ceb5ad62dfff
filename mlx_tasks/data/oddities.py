"""What in a folder of pictures was perhaps meant otherwise than it is read, a line each, with what to do."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

from mlx_tasks.data.class_names import name_key
from mlx_tasks.data.layout import looks_like_no_class
from mlx_tasks.data.listing import Listing
from mlx_tasks.data.metadata import Metadata
from mlx_tasks.data.told import counted, some
from mlx_tasks.data.tree import NOT_READ, Tree

_ABSENT = frozenset({"nan", "none", "null", "n/a", "na", "nat", "<na>"})
"""How programs write a value that is absent."""

_OF_ANOTHER = re.compile(r"[-_ ](masks?|seg|segmentation|trimap|depth|thumb|thumbnail|gt|label)(_\d+)?\.\w+$", re.I)
"""What follows the name of a picture in that of its mask."""

LEAST_LIKE_A_CLASS = 5
"""Images whose names begin alike, for each of such beginnings, before those look like classes."""


def odd_lines(tree: Tree, metadata: Metadata, listing: Listing, labels: Counter[str], by_folder: bool) -> Iterator[str]:
    """The lines.  labels: how many images have each; by_folder: labels come from the folders."""
    if by_folder:
        yield from _folders(labels)
    yield from _classes(labels)
    yield from _captions(listing)
    if not labels:
        yield from _one_caption(listing)
    if not labels and not listing.captions.sizes().any():
        yield from _named_like_classes(tree.paths)
    yield from _named_like_masks(tree.paths)
    yield from _not_read(tree)
    if metadata.lost:
        first = next(iter(metadata.lost.values()))[1]
        yield f"{counted(len(metadata.lost), 'metadata row')} without an image, for example {first}"
    if tree.refused:
        path, (_, detail) = next(iter(tree.refused.items()))
        yield f"{counted(len(tree.refused), 'entry', 'entries')} that cannot be read, for example {path}: {detail}"


def _folders(labels: Counter[str]) -> Iterator[str]:
    if like := sorted(name for name in labels if looks_like_no_class(name)):
        yield (
            f"{counted(len(like), 'class', 'classes')} named {some(like)}: that looks like where images lie, and not "
            "like what is on them. Masks and the like belong out of the dataset; images without classes go straight "
            "into its folder; splits need a train folder and nothing beside the splits"
        )
    if repeats := sorted(name for name in labels if re.match(r"\d+_\D", name)):
        yield f"class names with a number before them ({some(repeats)}): it is part of the name, and no repeat"
    if alone := sorted(name for name, count in labels.items() if count == 1):
        yield f"{counted(len(alone), 'class', 'classes')} of one image only: {some(alone)}"


def _classes(labels: Counter[str]) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for name in sorted(labels):
        alike.setdefault(name_key(name), []).append(name)
    if same := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        yield f"classes that differ in case, spaces or hyphens alone ({some(same)}): if they are one, name them alike"
    if absent := sorted(name for name in labels if name.lower() in _ABSENT):
        yield f"a class named {some(absent)}, as programs write a label that is absent: leave it empty"


def _captions(listing: Listing) -> Iterator[str]:
    sizes = listing.captions.sizes()
    short = ((sizes > 0) & (sizes <= max(map(len, _ABSENT)))).nonzero()[0].tolist()
    absent = Counter(text for row in short if (text := listing.captions[row]).lower() in _ABSENT)
    absent -= Counter({name: absent[name] for name in listing.labels.values if name})
    if absent:
        yield f"captions that read {some(sorted(absent))}, as programs write one that is absent: leave them empty"


def _one_caption(listing: Listing) -> Iterator[str]:
    """Whether all captions are one text, as a trigger word is."""
    sizes = listing.captions.sizes()
    if len(sizes) < 2 or sizes.min() != sizes.max() or not sizes[0]:
        return
    first = listing.captions[0]
    if all(listing.captions[row] == first for row in range(1, len(sizes))):
        yield f"all {len(sizes)} captions are one text, {first[:60]!r}: prompts will make no difference"


def _named_like_classes(paths: list[str]) -> Iterator[str]:
    """Whether file names begin with a few words, each with numbers behind it: `Abyssinian_1.jpg`, `cat.7.jpg`."""
    begins = Counter(re.sub(r"[\W_]*\d+$", "", os.path.splitext(os.path.basename(path))[0]) for path in paths)
    few = 1 < len(begins) <= len(paths) / LEAST_LIKE_A_CLASS
    if few and all(re.search(r"[^\W\d_]", name) for name in begins):
        some_of = some([f"{name} {count}" for name, count in begins.most_common()])
        yield f"file names that begin alike ({some_of}): if those are classes, put each into a folder of its name"


def _named_like_masks(paths: list[str]) -> Iterator[str]:
    """Whether pictures lie beside pictures that they say something of: `1_mask.png` beside `1.png`."""
    like = [path for path in paths if _OF_ANOTHER.search(path)]
    if like:
        stems = {os.path.splitext(path)[0] for path in paths}
        like = [path for path in like if _OF_ANOTHER.sub("", path) in stems]
    if like:
        named = counted(len(like), "image")
        yield f"{named} beside the one that its name is made of ({some(like, 2)}): masks and the like belong out"


def _not_read(tree: Tree) -> Iterator[str]:
    kinds = Counter(os.path.splitext(path)[1].lower() for path in tree.paths)
    if unread := {kind: kinds[kind] for kind in sorted(NOT_READ) if kinds[kind]}:
        named = some([f"{count} {kind}" for kind, count in unread.items()])
        yield f"pictures of kinds that are not read ({named}): convert them to JPEG or PNG, or move them out"
