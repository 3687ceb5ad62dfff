"""What lies under a folder of pictures: one walk for all who read one. No link is followed out of the folder."""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from mlx_tasks.errors import DataError

EXTENSIONS = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .gif .webp .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .jp2 .j2k".split()
    # Pictures that are not read here: they are taken up to be refused by name, not passed over in silence.
    + ".heic .heif .svg .eps .psd .ico .jxl .dng .exr".split()
)
NOT_READ = frozenset(".heic .heif .svg .eps .psd .jxl .exr".split())
"""Extensions of pictures of which no file is read."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TABLES = frozenset(".jsonl .ndjson .csv .tsv .parquet .json".split())
CAPTIONS = (".txt", ".caption")
"""Extensions of a caption beside its picture, in the order in which they are looked for."""
MOST_STRAY = 3
_SYSTEM = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"})
"""Folders that systems and storage devices make: forks, thumbnails, what was thrown away."""


@dataclass
class Tree:
    """What lies in a folder.

    Attributes:
        folder: where it is.
        paths: of the pictures, relative to it, NFC, sorted, each once.
        spelt: a picture's own name where it is spelt otherwise than its path.
        refused: {path: (reason, detail)} of what cannot be read: broken links, links that leave the folder, folders
            that cannot be listed. None of them is among `paths`.
        tables: files that could be metadata, by their own names relative to the folder, sorted.
        beside: {path: what follows the picture's stem} of the captions beside pictures: `.txt` for 1.txt beside 1.png,
            `.png.txt` for 1.png.txt.
        stray: the first texts and captions that lie beside no picture of their name.
        passed_over: how many of what were passed over, by a word or two each: ".txt", "hidden", "linked folder".
    """

    folder: Path
    paths: list[str] = field(default_factory=list)
    spelt: dict[str, str] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    stray: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def file_name(self, path: str) -> str:
        """The file's own name, relative to the folder."""
        return self.spelt.get(path, path)

    def caption_file(self, path: str) -> Path | None:
        """The file beside the picture that holds its caption."""
        suffix = self.beside.get(path)
        return None if suffix is None else self.folder / (os.path.splitext(self.file_name(path))[0] + suffix)


def read_tree(folder: Path) -> Tree:
    """Every picture under the folder, by extension, and what else lies there.

    Hidden files and folders (`._1.png` of macOS too), and those that systems make (`__MACOSX`), are passed over. A link
    to a file of the folder is that file; one to a folder is not followed, since what it leads to is in the dataset
    already, or outside. Two files whose names differ in their Unicode form alone are one path, which is the later
    one's.
    Raises: DataError where the folder itself cannot be listed.
    """
    tree, root = Tree(folder), os.path.realpath(folder)
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not inside:
                raise DataError(f"cannot list {folder}: {error.strerror}") from None
            tree.refused[posix(inside.rstrip("/"))] = ("unreadable", f"the folder cannot be listed: {error.strerror}")
            continue
        _take(tree, root, inside, entries, waiting)
    tree.paths.sort()
    tree.paths = [path for path, after in zip_longest(tree.paths, tree.paths[1:]) if path != after]
    tree.tables.sort()
    for path in tree.refused.keys() & set(tree.paths) if tree.refused else ():
        del tree.refused[path]
    return tree


def _take(tree: Tree, root: str, inside: str, entries: list[os.DirEntry[str]], waiting: list[str]) -> None:
    """Put one folder's entries where they belong; its folders go to `waiting`."""
    pictures, others = [], []
    if inside and not entries:
        tree.passed_over[f"empty folder ({posix(inside.rstrip('/'))})"] += 1
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
            tree.passed_over["hidden"] += 1
            continue
        kind, problem = _kind(entry, root)
        extension = os.path.splitext(entry.name)[1].lower()
        if kind == "folder":
            waiting.append(f"{inside}{entry.name}/")
        elif kind == "linked folder":
            tree.passed_over[f"linked folder ({posix(inside + entry.name)})"] += 1
        elif problem and (extension in EXTENSIONS or kind == "folder outside" or (kind == "broken" and not extension)):
            tree.refused[posix(inside + entry.name)] = problem
        elif problem and entry.name.lower() in METADATA:
            raise DataError(f"{entry.path} cannot be read: it is {_WORDS[kind]}")
        elif problem:
            tree.passed_over[f"{extension or 'file'} that is {_WORDS[kind]}"] += 1
        elif extension in EXTENSIONS:
            pictures.append(entry.name)
        else:
            others.append(entry.name)
    for name in pictures:
        path = posix(inside + name)
        tree.paths.append(path)
        if path != inside + name:
            tree.spelt[path] = inside + name
        else:
            tree.spelt.pop(path, None)
    _take_others(tree, inside, pictures, others)


_WORDS = {
    "broken": "a broken link",
    "outside": "a link out of the folder",
    "folder outside": "a link out of the folder",
    "special": "no file (a pipe, a socket or a device)",
}


def _kind(entry: os.DirEntry[str], root: str) -> tuple[str, tuple[str, str] | None]:
    """(folder, file, linked folder, or what is wrong with it; why it cannot be used)."""
    if not entry.is_symlink():
        if entry.is_dir(follow_symlinks=False):
            return "folder", None
        if entry.is_file(follow_symlinks=False):
            return "file", None
        return "special", ("unreadable", "a pipe, a socket or a device, and no file")
    try:
        target = os.path.realpath(entry.path, strict=True)
        mode = os.stat(target).st_mode
    except OSError as error:
        return "broken", ("unreadable", f"a broken link to {_linked(entry.path)!r}: {error.strerror}")
    is_folder = stat.S_ISDIR(mode)
    if not (target + os.sep).startswith(root.rstrip(os.sep) + os.sep):
        what = "folder" if is_folder else "file"
        detail = f"a link to the {what} {target!r}: put the {what} itself here (cp -RL follows links)"
        return "folder outside" if is_folder else "outside", ("outside_folder", detail)
    if is_folder:
        return "linked folder", None
    if stat.S_ISREG(mode):
        return "file", None
    return "special", ("unreadable", "a link to a pipe, a socket or a device, and no file")


def _linked(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "?"


def _take_others(tree: Tree, inside: str, pictures: list[str], others: list[str]) -> None:
    """Captions beside pictures, tables, and the count of the rest."""
    if not others:
        return
    stems: dict[str, list[str]] = {}
    for name in pictures:
        for stem in (os.path.splitext(name)[0], name):
            stems.setdefault(stem, []).append(name)
    for name in sorted(others, key=_by_caption):
        stem, extension = os.path.splitext(name)
        extension = extension.lower()
        alone = [one for one in stems.get(stem, ()) if posix(inside + one) not in tree.beside]
        if extension in CAPTIONS and alone:
            for one in alone:
                tree.beside[posix(inside + one)] = sys.intern(name[len(os.path.splitext(one)[0]) :])
        elif extension in TABLES and stem not in stems:
            tree.tables.append(inside + name)
        else:
            tree.passed_over[extension or "without an extension (as .png)"] += 1
            if extension in CAPTIONS and len(tree.stray) < MOST_STRAY:
                tree.stray.append(posix(inside + name))


def _by_caption(name: str) -> int:
    extension = os.path.splitext(name)[1].lower()
    return CAPTIONS.index(extension) if extension in CAPTIONS else len(CAPTIONS)


def posix(name: str) -> str:
    """The path as text that every reader of the manifest can hold: NFC, undecodable bytes replaced."""
    if name.isascii():
        return name
    text = os.fsencode(name).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)
