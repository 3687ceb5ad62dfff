"""What the folders that pictures lie in say: splits by their usual names, at the top or a folder down, and classes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

SPLIT_NAMES = {
    name: split
    for split, names in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for name in names
}
_PLACES = frozenset("images image imgs img jpegimages jpegs jpgs pngs".split())
"""Names of a place where pictures are put, which say nothing of what is on them."""
_FILLERS = _PLACES | frozenset("pictures pics photos data dataset set split jpg png".split())
"""Words that a split's folder has beside its name: train_images, test set."""
_NO_CLASSES = frozenset(
    "mask masks trimap trimaps label labels annotation annotations segmentation segmentations segmentationclass"
    " segmentationobject groundtruth bbox bboxes thumbnail thumbnails thumb thumbs metadata captions".split()
)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WITH_FILLER = re.compile(f"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(set|data|images?|imgs?)?")


@dataclass(frozen=True)
class Layout:
    """What folders say of the pictures in them, by folder ("" is the dataset's own).

    Attributes:
        splits: the split of a folder: train, validation or test where the source gives it.
        classes: the class that it names, None where it names none.
        odd: what looks like something else than it was taken for, a sentence each.
    """

    splits: dict[str, str | None] = field(default_factory=dict)
    classes: dict[str, str | None] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)


def read_layout(paths: Iterable[str]) -> Layout:
    """What the folders of these pictures say.  paths: relative, `/` between.

    Splits are taken over where every picture lies in a folder named after one, at one level: at the top (below what
    all have in common, as `archive/`), or one folder down, as `cat/train`; and where one is train. Other words in
    their names must be the same in all, as in `seg_train` and `seg_test`.
    A class is the innermost folder's name below the split, or above it where there is none below. A place such as
    `images` is no class inside another folder, nor where it is the only one.
    """
    folders = {path: path.split("/") if path else [] for path in {path.rpartition("/")[0] for path in paths}}
    parts = list(folders.values())
    wrapper = _common(parts)
    depth = next((d for d in (wrapper, wrapper + 1) if _all_splits(parts, d)), None)
    if depth is None:
        top = wrapper if len(folders) > 1 else max(wrapper - 1, 0)
        below = {path: names[top:] for path, names in folders.items()}
        return Layout(dict.fromkeys(folders), _classes(below), _odd_splits(parts, wrapper))
    splits = {path: _split_and_rest(names[depth])[0] for path, names in folders.items()}
    below = _below_splits({path: names[depth:] for path, names in folders.items()})
    if not any(below.values()):
        below = {path: names[wrapper:depth] for path, names in folders.items()}
    return Layout(splits, _classes(below))


def split_named(folder: str) -> str | None:
    """The split that a folder's name says: `train`, `val2017`, `train_images`, `Testing Set`; else None."""
    split, rest = _split_and_rest(folder)
    return None if rest else split


def _split_and_rest(folder: str) -> tuple[str | None, tuple[str, ...]]:
    """(the split that one word of a folder's name says, its other words less fillers): `seg_train`: train, (seg,)."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[\W_]+", _HUMP.sub(" ", folder).lower())]
    words = [word for word in words if word and word not in _FILLERS]
    named = [found[1] for word in words if (found := _WITH_FILLER.fullmatch(word))]
    rest = tuple(word for word in words if not _WITH_FILLER.fullmatch(word))
    return (SPLIT_NAMES[named[0]] if len(named) == 1 else None), rest


def _below_splits(folders: dict[str, list[str]]) -> dict[str, list[str]]:
    """The folders below the split's, which comes first, less one that repeats it and holds all: train/train/cat."""
    first: dict[str, set[str]] = {}
    for names in folders.values():
        first.setdefault(names[0], set()).update(names[1:2] or [""])
    repeated = {name for name, inner in first.items() if len(inner) == 1 and _repeats(name, *inner)}
    return {path: names[2:] if names[0] in repeated else names[1:] for path, names in folders.items()}


def _repeats(outer: str, inner: str) -> bool:
    split = _split_and_rest(outer)
    return _split_and_rest(inner) in (split, (split[0], ()))


def looks_like_no_class(name: str) -> bool:
    """Whether a folder's name says where pictures are, or of which split or kind, more than what is on them."""
    words = re.findall(r"[a-z]+", name.lower())
    last = words[-1] if words else ""
    return split_named(name) is not None or last in _PLACES or not _NO_CLASSES.isdisjoint(words)


def _common(folders: list[list[str]]) -> int:
    """How many leading folders all share, not counting one named after a split."""
    first, last = min(folders, default=[]), max(folders, default=[])
    shared = takewhile(lambda pair: pair[0] == pair[1] and not split_named(pair[0]), zip(first, last, strict=False))
    return len(list(shared))


def _all_splits(folders: list[list[str]], depth: int) -> bool:
    """Whether all lie in folders named after splits at this level, train among them: without there is nothing to
    learn from by that reading.
    """
    if any(len(parts) <= depth for parts in folders):
        return False
    found = {_split_and_rest(parts[depth]) for parts in folders}
    splits, rests = {split for split, _ in found}, {rest for _, rest in found}
    alike = rests == {()} or (len(rests) == 1 and len(splits) > 1)
    return alike and None not in splits and "train" in splits


def _classes(below: dict[str, list[str]]) -> dict[str, str | None]:
    """The innermost name of each that is no place; a place counts where it stands alone beside others."""
    inner = {names[-1].lower() for names in below.values() if any(not _is_place(name) for name in names[:-1])}
    told = {}
    for path, names in below.items():
        alone = names[-1] if names and names[-1].lower() not in inner else None
        told[path] = next((name for name in reversed(names) if not _is_place(name)), alone)
    found = {name for name in told.values() if name is not None}
    return dict.fromkeys(below) if len(found) == 1 and _is_place(*found) else told


def _is_place(name: str) -> bool:
    return name.lower() in _PLACES


def _odd_splits(folders: list[list[str]], wrapper: int) -> list[str]:
    """What looks like splits and was not taken for such, with why."""
    for depth in (wrapper, wrapper + 1):
        names = {"/".join(parts[: depth + 1]): parts[depth] if len(parts) > depth else "" for parts in folders}
        said = {path: _split_and_rest(name) for path, name in names.items()}
        splits: dict[tuple[str, ...], set[str]] = {}
        for split, rest in said.values():
            if split:
                splits.setdefault(rest, set()).add(split)
        like = sorted(path for path, (split, rest) in said.items() if split and len(splits[rest]) > 1)
        if not like:
            continue
        others = sorted(path or "images beside the folders" for path in names if path not in like)
        if others:
            why = f"to keep the splits, move what else is there out ({_some(others)})"
        elif all(said[path][0] != "train" for path in like):
            why = "none of them is train"
        else:
            why = "their names differ in more than the split: put them as train/A, train/B, test/A"
        return [f"{_some(like)} look like splits and are taken as one set: {why}"]
    return []


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
