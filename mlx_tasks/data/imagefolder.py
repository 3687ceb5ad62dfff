"""A folder in the Hugging Face imagefolder convention: class folders, metadata files, split folders, any nesting."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.sources import Candidate, Source
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


@dataclass(frozen=True)
class _Row:
    """What one line of a metadata file says of its image, as written there."""

    label: Any
    caption: Any


def read_folder(folder: Path, seed: int) -> Source:
    """The images under a folder, sorted by path, with what its metadata files and folder names say of them.

    A metadata file speaks for the files under its own folder, by `file_name`. A label is its `label` field; where no
    metadata file has that field, it is the name of the image's own folder, provided that there are class folders.
    A caption is `text` or `caption`; where an image has a label and no caption, the label is its caption.
    Raises: DataError where there is no image, or a metadata file cannot be read.
    """
    files = dict(_image_files(folder))
    rows, metadata_files, lost = _read_metadata(folder, files)
    if not files and not lost:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataError(
            f"{folder} holds no image files: put images there, in class folders or beside a metadata file ({kinds})"
        )
    splits = _split_folders(files)
    labelled_rows = any(row.label not in (None, "") for row in rows.values())
    folders = {} if labelled_rows else _class_folders(files, splits, bool(metadata_files))
    candidates = [
        _candidate(name, file, rows.get(name), folders.get(name), splits.get(name), seed)
        for name, file in files.items()
    ]
    candidates += [Candidate(path=name, problem=problem) for name, problem in lost.items()]
    _settle(candidates)
    facts = {"metadata_files": metadata_files, "split_folders": sorted(set(splits.values()))}
    return Source(folder.name, sorted(candidates, key=lambda c: c.path), facts=facts)


def _image_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(NFC path relative to the folder, file) of every picture, by extension; hidden ones are passed over."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                file = Path(parent, name)
                yield _posix(file.relative_to(folder)), file


def _raise(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}")


def _posix(path: Path) -> str:
    """The path as text that every reader of the manifest can hold: `/` between, NFC, undecodable bytes replaced."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)


def _read_metadata(
    folder: Path, files: dict[str, Path]
) -> tuple[dict[str, _Row], list[str], dict[str, tuple[str, str]]]:
    """(rows by image path, the files read, {path: problem} of rows without an image)."""
    rows: dict[str, _Row] = {}
    lost: dict[str, tuple[str, str]] = {}
    read: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        there = [name for name in METADATA if name in names]
        if len(there) > 1:
            raise DataError(f"{parent} holds both {' and '.join(there)}: keep one")
        for name in there:
            path = Path(parent, name)
            base = path.parent.relative_to(folder)
            read.append(_posix(path.relative_to(folder)))
            for place, record in _records(path):
                target, problem = _locate(base, record["file_name"], files)
                if target in rows or target in lost:
                    raise DataError(f"{place}: {target!r} has a row already: give one row an image")
                if problem:
                    lost[target] = problem
                else:
                    rows[target] = _row(record)
    return rows, read, lost


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, record) of each line.  Raises: DataError naming the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8: {error}") from None
    numbered = _json_lines(path, text) if path.suffix == ".jsonl" else _csv_lines(path, text)
    for line, record in numbered:
        place = f"{path}, line {line}"
        name = record.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{place}: every row needs a file_name, text that names the image; got {name!r:.80}")
        yield place, record


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} must be a JSON object, got {type(record).__name__}")
        yield number, record


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if "file_name" not in (reader.fieldnames or []):
        raise DataError(f"{path} must have a column file_name; it has {reader.fieldnames}")
    try:
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _locate(base: Path, name: str, files: dict[str, Path]) -> tuple[str, tuple[str, str] | None]:
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


def _split_folders(files: dict[str, Path]) -> dict[str, str]:
    """The split of each image, if all lie in folders named after splits at one level (the top, or inside `data`).

    Without a train folder there is nothing to learn from by that reading, so the folders count as no splits.
    """
    found: dict[str, str] = {}
    for name in files:
        parts = name.split("/")
        depth = 1 if len(parts) > 2 and parts[0] == "data" else 0
        split = SPLIT_NAMES.get(parts[depth].lower()) if len(parts) > depth + 1 else None
        if split is None:
            return {}
        found[name] = split
    return found if "train" in found.values() else {}


def _class_folders(files: dict[str, Path], splits: dict[str, str], metadata: bool) -> dict[str, str]:
    """The class folder of each image: its own folder's name, unless that is the dataset's or a split's.

    A single folder beside a metadata file is where the images were put, and no class.
    """
    found = {}
    for name in files:
        parts = name.split("/")[:-1]
        if name in splits:
            parts = parts[2:] if parts[0] == "data" else parts[1:]
        if parts:
            found[name] = parts[-1]
    return {} if metadata and len(set(found.values())) == 1 else found


def _candidate(name: str, file: Path, row: _Row | None, folder: str | None, split: str | None, seed: int) -> Candidate:
    candidate = Candidate(path=name, file=file, given_split=split)
    try:
        candidate.label = clean_label(folder if row is None or folder is not None else row.label)
    except Refusal as refusal:
        candidate.problem = (refusal.reason, refusal.detail)
    if row is not None:
        candidate.caption = clean_caption(row.caption, seeded_choice(seed, name))
    return candidate


def _settle(candidates: list[Candidate]) -> None:
    """Labels are for all or for none: where some images have one, the others are marked; the same for captions."""
    labelled = any(c.label is not None or (c.problem or ("",))[0] == "bad_label" for c in candidates)
    captioned = any(c.caption is not None for c in candidates)
    for candidate in candidates:
        if candidate.problem is not None:
            continue
        if labelled and candidate.label is None:
            candidate.problem = ("missing_label", "other images have one")
        elif labelled and candidate.caption is None:
            candidate.caption = clean_caption((candidate.label or "").replace("_", " "))
        elif captioned and candidate.caption is None:
            candidate.problem = ("missing_caption", "other images have one")
