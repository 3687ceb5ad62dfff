"""A folder in the Hugging Face imagefolder convention: class folders, metadata files, split folders, any nesting."""

from __future__ import annotations

import csv
import functools
import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

from mlx_tasks.data.listing import Listing
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.sources import Source
from mlx_tasks.data.text import clean_caption, clean_label, seeded_choice
from mlx_tasks.errors import DataError

EXTENSIONS = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .gif .webp .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2 .j2k".split()
    # Pictures that are not read here: they are taken up to be refused by name, not passed over in silence.
    + ".heic .heif .svg .eps .psd .ico .jxl .dng .exr".split()
)
SPLIT_NAMES = {
    name: split
    for split, names in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for name in names
}
METADATA = ("metadata.jsonl", "metadata.csv")
LABEL_KEY = "label"
CAPTION_KEYS = ("text", "caption")


@dataclass(frozen=True, slots=True)
class _Row:
    """What one line of a metadata file says of its image, as written there."""

    label: Any
    caption: Any


class _Files(NamedTuple):
    """What lies in a folder.

    Attributes:
        paths: of the pictures, relative to it, NFC, sorted, each once.
        spelt: the file's own name where it is spelt otherwise than its path.
        metadata: the metadata files.
    """

    paths: list[str]
    spelt: dict[str, str]
    metadata: list[Path]


def read_folder(folder: Path, seed: int) -> Source:
    """The images under a folder, sorted by path, with what its metadata files and folder names say of them.

    A metadata file speaks for the files under its own folder, by `file_name`. A label is its `label` field; where no
    metadata file has that field, it is the name of the image's own folder, provided that there are class folders.
    A caption is `text` or `caption`; where an image has a label and no caption, the label is its caption.
    Raises: DataError where there is no image, or a metadata file cannot be read.
    """
    files = _list(folder)
    rows, lost = _read_metadata(folder, files)
    if not files.paths and not lost:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataError(
            f"{folder} holds no image files: put images there, in class folders or beside a metadata file ({kinds})"
        )
    split = _split_of if _all_in_splits(files.paths) else _no_split
    labelled_rows = any(row.label not in (None, "") for row in rows.values())
    classes = set() if labelled_rows else {_class_folder(path, split(path)) for path in files.paths} - {None}
    # A single folder beside a metadata file is where the images were put, and no class.
    by_folder = len(classes) > (1 if files.metadata else 0)
    told = _Told([], [], dict(lost))
    paths = sorted([*files.paths, *lost])
    for path in paths:
        told.add(
            path, rows.get(path), _class_folder(path, split(path)) if by_folder and path not in lost else None, seed
        )
    _settle(told, paths)
    listing = Listing(folder)
    for path, label, caption in zip(paths, told.labels, told.captions, strict=True):
        file_name = None if path in lost else files.spelt.get(path, path)
        given = None if path in lost else split(path)
        listing.append(path, file_name, label, caption, given, told.problems.get(path))
    metadata_files = [_posix(path.relative_to(folder).as_posix()) for path in files.metadata]
    split_folders = sorted({found for path in files.paths if (found := split(path))})
    return Source(folder.name, listing, facts={"metadata_files": metadata_files, "split_folders": split_folders})


def _list(folder: Path) -> _Files:
    """Every picture under the folder, by extension, and every metadata file; hidden ones are passed over.

    Two files whose names differ in their Unicode form alone are one path, which is the later one's.
    """
    spelt: dict[str, str] = {}
    paths: list[str] = []
    metadata: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names.sort()
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                path = _posix(prefix + name)
                paths.append(path)
                if path != prefix + name:
                    spelt[path] = prefix + name
                elif path in spelt:
                    del spelt[path]
        there = [name for name in METADATA if name in names]
        if len(there) > 1:
            raise DataError(f"{parent} holds both {' and '.join(there)}: keep one")
        metadata += [Path(parent, name) for name in there]
    paths.sort()
    paths = [path for path, after in zip_longest(paths, paths[1:]) if path != after]
    return _Files(paths, spelt, metadata)


def _raise(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}")


def _posix(name: str) -> str:
    """The path as text that every reader of the manifest can hold: NFC, undecodable bytes replaced."""
    if name.isascii():
        return name
    text = os.fsencode(name).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)


def _read_metadata(folder: Path, files: _Files) -> tuple[dict[str, _Row], dict[str, tuple[str, str]]]:
    """(rows by image path, {path: problem} of rows without an image)."""
    rows: dict[str, _Row] = {}
    lost: dict[str, tuple[str, str]] = {}
    there = set(files.paths) if files.metadata else set()
    for file in files.metadata:
        base = file.parent.relative_to(folder)
        for place, record in _records(file):
            target, problem = _locate(base, record["file_name"], there)
            if target in rows or target in lost:
                raise DataError(f"{place}: {target!r} has a row already: give one row an image")
            if problem:
                lost[target] = problem
            else:
                rows[target] = _row(record)
    return rows, lost


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, record) of each line.  Raises: DataError naming the line."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            numbered = _json_lines(path, file) if path.suffix == ".jsonl" else _csv_lines(path, file)
            for line, record in numbered:
                place = f"{path}, line {line}"
                name = record.get("file_name")
                if not isinstance(name, str) or not name.strip():
                    raise DataError(
                        f"{place}: every row needs a file_name, text that names the image; got {name!r:.80}"
                    )
                yield place, record
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8: {error}") from None


def _json_lines(path: Path, lines: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} must be a JSON object, got {type(record).__name__}")
        yield number, record


def _csv_lines(path: Path, lines: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines)
    if "file_name" not in (reader.fieldnames or []):
        raise DataError(f"{path} must have a column file_name; it has {reader.fieldnames}")
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _locate(base: Path, name: str, files: set[str]) -> tuple[str, tuple[str, str] | None]:
    """(the image's path in the dataset, why it cannot be used)."""
    parts = PurePosixPath(name.strip()).parts
    joined = os.path.normpath((PurePosixPath(base.as_posix()) / PurePosixPath(*parts)).as_posix())
    target = unicodedata.normalize("NFC", joined)
    if target.startswith(("../", "/")) or target == "..":
        return target, ("outside_folder", f"file_name {name!r}")
    if target not in files:
        return target, ("missing_file", f"file_name {name!r}")
    return target, None


def _row(record: dict[str, Any]) -> _Row:
    caption = next((record[key] for key in CAPTION_KEYS if record.get(key)), None)
    return _Row(record.get(LABEL_KEY), caption)


def _split_of(path: str) -> str | None:
    """The split that the path's folder is named after, at the top or inside `data`."""
    parts = path.split("/")
    depth = _depth(parts)
    return SPLIT_NAMES.get(parts[depth].lower()) if len(parts) > depth + 1 else None


def _depth(parts: list[str]) -> int:
    return 1 if len(parts) > 2 and parts[0] == "data" else 0


def _no_split(path: str) -> None:
    return None


def _all_in_splits(paths: list[str]) -> bool:
    """Whether all lie in folders named after splits at one level.

    Without a train folder there is nothing to learn from by that reading, so the folders count as no splits.
    """
    train = False
    for path in paths:
        split = _split_of(path)
        if split is None:
            return False
        train |= split == "train"
    return train


def _class_folder(path: str, split: str | None) -> str | None:
    """The class that an image's own folder names, unless that is the dataset's or a split's."""
    parts = path.split("/")[:-1]
    if split is not None:
        parts = parts[2:] if parts[0] == "data" else parts[1:]
    return parts[-1] if parts else None


@dataclass
class _Told:
    """What is said of each image, in the listing's order; problems by path."""

    labels: list[str | None]
    captions: list[str | None]
    problems: dict[str, tuple[str, str]]

    def add(self, path: str, row: _Row | None, folder: str | None, seed: int) -> None:
        label = caption = None
        try:
            if path not in self.problems:
                label = _folder_label(folder) if row is None or folder is not None else clean_label(row.label)
        except Refusal as refusal:
            self.problems[path] = (refusal.reason, refusal.detail)
        if row is not None:
            caption = clean_caption(row.caption, seeded_choice(seed, path))
        self.labels.append(label)
        self.captions.append(caption)


_folder_label = functools.lru_cache(maxsize=1024)(clean_label)


def _settle(told: _Told, paths: list[str]) -> None:
    """Labels are for all or for none: where some images have one, the others are marked; the same for captions."""
    problems = told.problems.values()
    labelled = any(label is not None for label in told.labels) or any(reason == "bad_label" for reason, _ in problems)
    captioned = any(caption is not None for caption in told.captions)
    for row, path in enumerate(paths):
        if path in told.problems:
            continue
        label = told.labels[row]
        if labelled and label is None:
            told.problems[path] = ("missing_label", "other images have one")
        elif labelled and told.captions[row] is None:
            told.captions[row] = _label_caption(label or "")
        elif captioned and told.captions[row] is None:
            told.problems[path] = ("missing_caption", "other images have one")


@functools.lru_cache(maxsize=1024)
def _label_caption(label: str) -> str | None:
    return clean_caption(label.replace("_", " "))
