"""A folder of pictures as people keep them: class folders, split folders, metadata files, captions beside pictures."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mlx_tasks.data.beside import Beside
from mlx_tasks.data.class_names import class_caption
from mlx_tasks.data.layout import Layout, looks_like_no_class, read_layout
from mlx_tasks.data.listing import Listing
from mlx_tasks.data.metadata import Metadata, Row, read_metadata
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.sources import Source
from mlx_tasks.data.surroundings import tell
from mlx_tasks.data.text import clean_caption, clean_label, seeded_choice
from mlx_tasks.data.told import counts
from mlx_tasks.data.tree import EXTENSIONS, read_tree
from mlx_tasks.errors import DataError

_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2"})


def read_folder(folder: Path, seed: int, max_uncaptioned: float = 0.2) -> Source:
    """The pictures under a folder, sorted by path, with what files beside them and folder names say of them.

    A metadata file speaks for the files under its own folder. A label is its `label` field; where no metadata file has
    that field, it is the name of the class folder, provided that there are several, or one and no captions. A caption
    is the metadata's, or that of the file beside the picture; where a picture has a label and no caption, the label is
    its caption. A held-out split of which no picture has the label (without labels, the caption) that train's have is
    passed over; so is a folder such as `masks` without captions where the others have them.
    max_uncaptioned: share of pictures whose caption may be empty on purpose: a row or a file that says nothing.
    Raises: DataError where there is no picture, or a metadata file cannot be read.
    """
    tree = read_tree(folder)
    metadata = read_metadata(tree)
    if not tree.paths and not metadata.lost and not tree.refused:
        there = f" It holds {counts(tree.passed_over)}." if tree.passed_over else ""
        there += " Unpack the archives." if not _ARCHIVES.isdisjoint(tree.passed_over) else ""
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataError(
            f"{folder} holds no image files: put images there, in class folders or beside a metadata file ({kinds})."
            f"{there}{''.join(f' {name} is not read: {why}.' for name, why in list(metadata.ignored.items())[:3])}"
        )
    layout, beside = read_layout(tree.paths), Beside(tree)
    said = _Said(problems={**tree.refused, **metadata.lost})
    paths = sorted({*tree.paths, *said.problems}) if said.problems else tree.paths
    said.read(paths, metadata, beside, seed)
    classes = _class_folders(layout, metadata, beside, said)
    aside = said.settle(paths, layout, classes, max_uncaptioned, beside.lost)
    listing = Listing(folder)
    for row, path in enumerate(paths):
        gone = path in said.problems and path not in said.marked
        if _folder(path) in aside and not gone:
            continue
        file_name, split = (None, None) if gone else (tree.file_name(path), layout.splits[_folder(path)])
        listing.append(path, file_name, said.labels[row], said.captions[row], split, said.problems.get(path))
    splits = sorted({split for folder, split in layout.splits.items() if split and folder not in aside})
    facts = {"metadata_files": list(metadata.files), "split_folders": splits}
    told = tell(tree, layout, metadata, beside, listing, aside, classes is not None)
    return Source(folder.name, listing, facts=facts, told=told)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _class_folders(layout: Layout, metadata: Metadata, beside: Beside, said: _Said) -> dict[str, str | None] | None:
    """The class of each folder, or None where folders name none.

    A single folder beside captions is where the pictures were put; so are several whose names say so.
    """
    if said.labelled_rows:
        return None
    found = set(layout.classes.values()) - {None}
    captioned = bool(metadata.files) or bool(beside.read)
    if len(found) <= captioned or (captioned and all(looks_like_no_class(name) for name in found if name)):
        return None
    return layout.classes


@dataclass
class _Said:
    """What is said of each picture, in the order of the paths.

    Attributes:
        problems: {path: (reason, detail)}.
        marked: the paths among them that are pictures that were found.
        labels, captions: of each; None where there is none.
        blank: rows whose caption is empty on purpose.
        labelled_rows: whether a metadata file gives labels.
    """

    problems: dict[str, tuple[str, str]]
    marked: set[str] = field(default_factory=set)
    labels: list[str | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    blank: set[int] = field(default_factory=set)
    labelled_rows: bool = False

    def read(self, paths: list[str], metadata: Metadata, beside: Beside, seed: int) -> None:
        """Take up the labels of rows, and captions."""
        self.labelled_rows = any(row.label not in (None, "") for row in metadata.rows.values())
        for place, path in enumerate(paths):
            row = metadata.rows.get(path)
            self.labels.append(None)
            self.captions.append(None)
            if path in self.problems:
                continue
            if row is not None and self.labelled_rows:
                self._label(place, path, row)
            lines = beside.captions(path)
            if row is not None:
                self.captions[place] = clean_caption(row.caption, seeded_choice(seed, path))
            if lines and self.captions[place] is None:
                self.captions[place] = clean_caption(lines, seeded_choice(seed, path))
            if self.captions[place] is None and (row is not None or lines is not None):
                self.blank.add(place)

    def _label(self, place: int, path: str, row: Row) -> None:
        try:
            self.labels[place] = clean_label(row.label)
        except Refusal as refusal:
            self._mark(path, refusal.reason, refusal.detail)

    def settle(
        self,
        paths: list[str],
        layout: Layout,
        classes: dict[str, str | None] | None,
        max_uncaptioned: float,
        lost: dict[str, str],
    ) -> dict[str, int]:
        """Labels are for all or for none, and so are captions; whoever lacks them is marked.

        lost: {picture: why the caption beside it cannot be read}.
        Returns: {folder that is passed over as a whole: its pictures}.
        """
        if classes is not None:
            for place, path in enumerate(paths):
                if path not in self.problems:
                    self._folder_label(place, path, classes.get(_folder(path)))
        labelled = any(label is not None for label in self.labels)
        labelled |= any(reason == "bad_label" for reason, _ in self.problems.values())
        captioned = any(caption is not None for caption in self.captions)
        lacking = self.labels if labelled else self.captions
        aside = _aside(paths, layout, lacking, self.problems, labelled) if labelled or captioned else {}
        kept = [place for place, path in enumerate(paths) if path not in self.problems and _folder(path) not in aside]
        blank = sum(place in self.blank for place in kept) / len(kept) if self.blank and kept else 0.0
        for place in kept:
            if labelled and self.labels[place] is None:
                self._mark(paths[place], "missing_label", "other images have one")
            elif labelled and self.captions[place] is None:
                self.captions[place] = _label_caption(self.labels[place] or "")
            elif captioned and self.captions[place] is None and place not in self.blank:
                why = (
                    f"its caption file is one {lost[paths[place]]}" if paths[place] in lost else "other images have one"
                )
                self._mark(paths[place], "missing_caption", why)
            elif captioned and self.captions[place] is None and blank > max_uncaptioned:
                detail = f"empty, as {blank:.1%} of the captions are, above data.max_uncaptioned {max_uncaptioned:.1%}"
                self._mark(paths[place], "missing_caption", detail)
        return aside

    def _folder_label(self, place: int, path: str, name: str | None) -> None:
        try:
            self.labels[place] = _clean_folder(name)
        except Refusal as refusal:
            self._mark(path, refusal.reason, refusal.detail)

    def _mark(self, path: str, reason: str, detail: str) -> None:
        self.problems[path] = (reason, detail)
        self.marked.add(path)


def _aside(
    paths: list[str], layout: Layout, said: list[str | None], problems: dict[str, tuple[str, str]], labelled: bool
) -> dict[str, int]:
    """{folder that is passed over: its pictures}: nothing is said of any, where something is said of others.

    Those are a held-out split where something is said of most of train, and among captions without labels a folder
    whose name says that it holds something else, such as `masks`.
    """
    there, lacking = Counter[str](), Counter[str]()
    for path, value in zip(paths, said, strict=True):
        if path not in problems:
            there[_folder(path)] += 1
            lacking[_folder(path)] += value is None
    bare = {folder for folder in there if lacking[folder] == there[folder]}
    aside = set() if labelled else {folder for folder in bare if looks_like_no_class(folder.rpartition("/")[2])}
    train = [folder for folder in there if layout.splits[folder] == "train"]
    learned = 2 * sum(lacking[folder] for folder in train) < sum(there[folder] for folder in train)
    for split in ("validation", "test"):
        folders = {folder for folder in there if layout.splits[folder] == split}
        aside = aside | folders if learned and folders <= bare else aside - folders
    return {folder: there[folder] for folder in sorted(aside - set(train))}


_clean_folder = functools.lru_cache(maxsize=1024)(clean_label)
_label_caption = functools.lru_cache(maxsize=1024)(class_caption)
