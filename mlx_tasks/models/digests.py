"""digests.json: the SHA-256 of every file of a folder, so that what is read is what was written, all of it.

    {"algorithm": "sha256", "format": 2,
     "files": {name: digest},      what makes the images
     "beside": {name: digest}}     what tells of them: lineage.json, README.md, reference/

Format 1, from before there were formats, has no "beside": what lay beside was in no digest. It is still read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.files import sha256_file, write_json
from mlx_tasks.models.json_file import read_mapping
from mlx_tasks.models.limits import check_memory

logger = logging.getLogger(__name__)

DIGESTS = "digests.json"
FORMAT = 2
BESIDE = frozenset({"lineage.json", "README.md", "reference"})
"""First parts of the names that tell of the images and do not make them."""
MOST_FILES = 1000
MOST_PARTS = 8
_NOISE = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")
"""What file managers leave in every folder they show; nothing reads it."""
_DIGEST = re.compile("[0-9a-f]{64}")


def write_digests(folder: Path) -> None:
    """Write digests.json for what lies under `folder`.  Raises: DataError for links and names it could not list."""
    found = {name: sha256_file(path) for name, path in sorted(_files(folder).items())}
    files = {name: digest for name, digest in found.items() if not _beside(name)}
    _write(folder, files, {name: digest for name, digest in found.items() if _beside(name)})


def write_digests_beside(folder: Path) -> None:
    """Take what lies beside into the digests again, once something was added; what makes the images stays as told.

    Raises: DataError for a folder without digests.
    """
    told, _ = _told(folder)
    found = {name: sha256_file(path) for name, path in sorted(_files(folder).items()) if _beside(name)}
    _write(folder, told, found)


def check_digests(folder: Path) -> None:
    """Compare the files with digests.json, if the folder has one (diffusers' own folders do not).

    Raises: DataError listing the files that are gone, changed or in no list, and links, which are never followed.
    """
    if not (folder / DIGESTS).is_file():
        return
    found = _files(folder)
    files, beside = _told(folder)
    told = {**files, **(beside or {})}
    extra = [name for name in found if name not in told and (beside is not None or not _beside(name))]
    if extra:
        raise DataError(f"{folder} holds {listed(extra)}, which {DIGESTS} does not list: remove what was added")
    check_memory(sum(path.stat().st_size for path in found.values()), f"{folder} as a whole")
    changed = [name for name, digest in told.items() if name not in found or sha256_file(found[name]) != digest]
    if changed:
        raise DataError(f"{folder}: {listed(changed)} differ from {DIGESTS}; copy the folder again from where it came")
    if beside is None and any(map(_beside, found)):
        logger.info("digests=format-1 folder=%s unchecked='%s'", folder, listed([n for n in found if _beside(n)]))


def bundle_digest(folder: Path) -> str:
    """SHA-256 (hex) over the digests of what makes a folder's images: the same for bundles that draw the same."""
    return _sha256({"algorithm": "sha256", "files": _told(folder)[0]})


def content_digest(folder: Path) -> str:
    """SHA-256 (hex) over the digests of all of a folder's files; empty for one of format 1, which does not list all."""
    files, beside = _told(folder)
    return "" if beside is None else _sha256({"algorithm": "sha256", "files": files, "beside": beside})


def listed(names: list[str], most: int = 8) -> str:
    """Names for a message."""
    if not names:
        return "nothing"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name:.200}" for name in names[:most]) + rest


def _write(folder: Path, files: dict[str, str], beside: dict[str, str]) -> None:
    write_json(folder / DIGESTS, {"algorithm": "sha256", "format": FORMAT, "files": files, "beside": beside})


def _told(folder: Path) -> tuple[dict[str, str], dict[str, str] | None]:
    """The two lists of digests.json; of format 1 one and None.  Raises: DataError for another form."""
    path = folder / DIGESTS
    values = read_mapping(path)
    first = "format" not in values
    keys = {"algorithm", "files"} if first else {"algorithm", "format", "files", "beside"}
    if set(values) != keys or values["algorithm"] != "sha256" or values.get("format", FORMAT) != FORMAT:
        raise DataError(
            f"{path} must have the keys {', '.join(sorted(keys))} with algorithm sha256 and format {FORMAT}, got "
            f"{values!r:.120}: write the folder again with this version"
        )
    files, beside = values["files"], None if first else values["beside"]
    for part in (files,) if first else (files, beside):
        if not isinstance(part, dict) or not all(_name(n) and _is_digest(d) for n, d in part.items()):
            raise DataError(f"{path} must map relative file names to SHA-256 digests, got {part!r:.120}")
    names = [*files, *(beside or {})]
    if not files:
        raise DataError(f"{path} lists no file: write the folder again")
    if len({_plain(name) for name in names}) != len(names):
        raise DataError(f"{path} lists a file twice, or two whose names differ by case alone: rename one")
    wrong = [n for n in files if not first and _beside(n)] + [n for n in beside or {} if not _beside(n)]
    if wrong:
        raise DataError(f"{path} lists {listed(wrong)} in the wrong part: write the folder again")
    return files, beside


def _files(folder: Path) -> dict[str, Path]:
    """{name: path} of every file under a folder but digests.json and file managers' own.

    Raises: DataError for links, whatever is neither file nor folder, and names that differ by case alone.
    """
    found: dict[str, Path] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        for entry in os.scandir(place):
            path = Path(entry.path)
            name = path.relative_to(folder).as_posix()
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise DataError(f"{folder} must hold files and folders only, {name:.200} is a link or a device")
            if entry.is_dir():
                waiting.append(path)
            elif name != DIGESTS and not _NOISE.fullmatch(entry.name):
                found[name] = path
            if len(found) > MOST_FILES or len(waiting) > MOST_FILES or name.count("/") >= MOST_PARTS:
                raise DataError(f"{folder} must hold at most {MOST_FILES} files, {MOST_PARTS} folders deep")
    if len({_plain(name) for name in found}) != len(found):
        raise DataError(f"{folder} holds files whose names differ by case alone: {listed(sorted(found))}")
    return found


def _name(name: str) -> bool:
    """Whether it names a file under the folder, plainly."""
    parts = PurePosixPath(name).parts
    return bool(
        parts
        and "\\" not in name
        and "\0" not in name
        and not name.startswith("/")
        and ".." not in parts
        and "/".join(parts) == name
        and name != DIGESTS
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _beside(name: str) -> bool:
    return name.partition("/")[0] in BESIDE


def _plain(name: str) -> str:
    """As a disk that minds neither case nor the form of accents keeps it."""
    return unicodedata.normalize("NFC", name).casefold()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
