"""The commit that a run starts from: the checkout's, with what of its uncommitted edits may leave the machine.

Tracked files go along with their edits. New files go along only where `FOLDERS` and `SUFFIXES` name them. The run's
dataset and whatever looks like a secret never do. "Tracked" is what HEAD has: the user's index is not asked.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mlx_tasks.errors import DataError
from mlx_tasks.workspace.git import git, identity
from mlx_tasks.workspace.secrecy import secret_name, secrets_in

FOLDERS = ("dags", "include", "mlx_tasks", "plugins")
SUFFIXES = (".css", ".html", ".j2", ".js", ".json", ".py", ".sh", ".sql", ".toml", ".yaml", ".yml")
TEXTS = (".json", ".toml", ".yaml", ".yml")
PICTURES = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
MAX_NEW_KB = 1024
DATASET, SECRET = "of the dataset", "looks like a secret"
NAMED = 8
"""How many names a line for people holds."""


@dataclass(frozen=True)
class Snapshot:
    """A run's first commit.

    Attributes:
        commit: the checkout's HEAD, or a child of it that holds uncommitted edits too.
        edited: tracked files whose edits were taken along.
        new: new files that were taken along.
        left: {what was not, a folder with a `/`: why}.
    """

    commit: str
    edited: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    def notes(self, branch: str) -> list[str]:
        """What was taken and what was left, in lines for people."""
        told = []
        if self.edited or self.new:
            parts = [("edits of", self.edited), ("new", self.new)]
            named = "; ".join(f"{what} {_listed(names)}" for what, names in parts if names)
            told.append(f"uncommitted edits are taken along as commit {self.commit[:12]} on {branch}: {named}")
        if self.left:
            told.append(f"not taken along: {_listed([f'{name} ({why})' for name, why in sorted(self.left.items())])}")
        return told


def take_snapshot(repository: Path, message: str, dataset: Path | None = None) -> Snapshot:
    """The checkout as a commit.  Works on a copy of the index, so the checkout's own stays as it is.

    Args:
        dataset: the run's folder of images, however it is named.

    Raises: DataError where an edit of a tracked file looks like a secret, or the dataset's folder holds the code.
    """
    head = git(repository, "rev-parse", "HEAD")
    inside = _Inside(repository, dataset)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        own = repository / git(repository, "rev-parse", "--git-path", "index")
        if own.exists():  # what it remembers of unchanged files, and which are not checked out, is worth having
            shutil.copy2(own, index["GIT_INDEX_FILE"])  # with its time: by that git knows what to read again
        staged = _names(git(repository, *_DIFF, "--cached", "--diff-filter=A", "--name-only", "HEAD"))
        git(repository, "read-tree", "--reset", "HEAD", environment=index)
        left: dict[str, str] = {}
        changed = _changed(repository, index, inside, left)
        fresh = _new(repository, index, staged, inside, left)
        _refuse_names([name for name, is_gone in changed.items() if not is_gone])
        gone = [name for name, is_gone in changed.items() if is_gone]
        there = [*(name for name in changed if name not in set(gone)), *fresh]
        if gone:
            git(repository, "update-index", "--force-remove", "-z", "--stdin", environment=index, paths=gone)
        if there:
            git(repository, "update-index", "--add", "--replace", "-z", "--stdin", environment=index, paths=there)
        tree = git(repository, "write-tree", environment=index)
        _refuse_secrets(repository, tree, there)
    if tree == git(repository, "rev-parse", "HEAD^{tree}"):
        return Snapshot(head, left=left)
    commit = git(repository, "commit-tree", tree, "-p", head, "-m", message, environment=identity(repository))
    return Snapshot(commit, tuple(map(_printable, changed)), tuple(map(_printable, fresh)), left)


_DIFF = ("diff", "-z", "--no-renames", "--no-ext-diff", "--no-relative")


def _changed(repository: Path, index: dict[str, str], inside: _Inside, left: dict[str, str]) -> dict[str, bool]:
    """{tracked file that is not as HEAD has it: whether it is gone}, but for those that stay as they were."""
    words = _names(git(repository, *_DIFF, "--name-status", "--ignore-submodules=dirty", environment=index))
    changed = {}
    for how, name in zip(words[::2], words[1::2], strict=True):
        if inside.dataset(name):
            left[_printable(name)] = DATASET
        elif how != "D" and (why := inside.why_no_edit(name)):
            left[_printable(name)] = why
        else:
            changed[name] = how == "D"
    return changed


def _new(
    repository: Path, index: dict[str, str], staged: list[str], inside: _Inside, left: dict[str, str]
) -> list[str]:
    """Files that HEAD lacks and that may go along."""
    listing = ("ls-files", "--others", "--exclude-standard", "-z", "--full-name")
    code = [f":(top,literal){folder}" for folder in FOLDERS]
    others = [f":(top,exclude,literal){folder}" for folder in FOLDERS]
    elsewhere = git(repository, *listing, "--directory", "--no-empty-directory", "--", ":/", *others, environment=index)
    albums = _albums(
        repository,
        _names(
            git(repository, "ls-files", "--others", "-z", "--full-name", "--directory", "--", *code, environment=index)
        ),
    )
    taken = []
    here = [name for name in staged if os.path.lexists(repository / name)]
    for name in sorted({*_names(git(repository, *listing, "--", *code, environment=index)), *here}):
        why = _why_not(repository, name, inside)
        if why or (PurePosixPath(name).suffix in TEXTS and name.startswith(albums)):
            left[_printable(name)] = why or "beside pictures, as captions are"
        else:
            taken.append(name)
    left |= {_printable(name): _why_not(repository, name, inside) for name in _names(elsewhere)}
    return taken


def _albums(repository: Path, new: list[str]) -> tuple[str, ...]:
    """New folders, each with a `/`, that hold pictures somewhere: a dataset, though not this run's."""
    return tuple(
        name
        for name in new
        if name.endswith("/")
        and any(
            PurePosixPath(file.lower()).suffix in PICTURES
            for _, _, files in os.walk(repository / name)
            for file in files
        )
    )


def _why_not(repository: Path, name: str, inside: _Inside) -> str:
    """Why a new file stays behind; empty where it may go along."""
    path, place = repository / name, PurePosixPath(name)
    if secret_name(name):
        return SECRET
    if place.parts[0] not in FOLDERS or len(place.parts) == 1:
        return f"not in {', '.join(FOLDERS)}"
    if name.endswith("/"):
        return "another repository"
    if inside.dataset(name):
        return DATASET
    if place.suffix not in SUFFIXES or any(part.startswith(".") for part in place.parts):
        return "no code by its name"
    try:
        told = path.lstat()
        if not stat.S_ISREG(told.st_mode) or inside.is_behind_link(name):
            return "a link, or no plain file"
        if told.st_size > MAX_NEW_KB * 1024:
            return f"over {MAX_NEW_KB} kB"
        content = path.read_bytes()
        content.decode("utf-8")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "no text"
    found = next(secrets_in(content), None)
    return f"{SECRET}: line {found.line}, {found.kind}" if found else ""


def _refuse_names(names: Iterable[str]) -> None:
    """Raises: DataError for an edited file with the name of a secret."""
    if found := [f"{_printable(name)} (by its name)" for name in names if secret_name(name)]:
        raise DataError(_REFUSED.format(_listed(found)))


def _refuse_secrets(repository: Path, tree: str, names: Iterable[str]) -> None:
    """Look at files as the commit would hold them: git's filters may have changed what the disk has.

    Raises: DataError naming the lines that look like a secret and that HEAD has not.
    """
    found = []
    for name in names:
        known = {one.text for one in secrets_in(_blob(repository, "HEAD", name))}
        new = [one for one in secrets_in(_blob(repository, tree, name)) if one.text not in known]
        found += [f"{_printable(name)}:{one.line} ({one.kind})" for one in new]
    if found:
        raise DataError(_REFUSED.format(_listed(found)))


_REFUSED = (
    "an uncommitted edit must hold no secret, for a run keeps it in a commit, and {} looks like one: read it from the "
    "environment or from an ignored file, or, if it is none, commit the edit yourself"
)


def _blob(repository: Path, tree: str, name: str) -> bytes:
    """A file's bytes in a tree, a link's target; empty where there is none, or another repository."""
    listed = git(repository, "ls-tree", "-z", tree, "--", f":(top,literal){name}")
    _, kind, blob = listed.partition("\t")[0].split(" ") if listed else ("", "", "")
    return git(repository, "cat-file", "blob", blob).encode("utf-8", "surrogateescape") if kind == "blob" else b""


class _Inside:
    """Where a checkout's files are, by what the disk says: not by how a path is spelled."""

    def __init__(self, repository: Path, dataset: Path | None) -> None:
        self._repository, self._real = repository, repository.resolve()
        self._dataset = _identity(dataset) if dataset else None
        self._known: dict[PurePosixPath, bool] = {}
        code = {_identity(place) for name in FOLDERS for place in (repository / name, *(repository / name).parents)}
        if self._dataset and self._dataset in code:
            raise DataError(
                f"data.path: a dataset's folder must not hold the code of runs, got {dataset}: put the images into a "
                "folder of their own"
            )

    def dataset(self, name: str) -> bool:
        """Whether the dataset's folder holds this file."""
        return self._dataset is not None and any(self._is_dataset(place) for place in PurePosixPath(name).parents[:-1])

    def why_no_edit(self, name: str) -> str:
        """Why what stands in a tracked file's place stays behind; empty where it may go along."""
        path = self._repository / name
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = Path(os.path.realpath(path))  # where links go in a circle, one of them
            out = os.path.isabs(os.readlink(path)) or target.is_symlink() or not target.is_relative_to(self._real)
            return "a link that leads out of the checkout" if out else ""
        return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "no plain file"

    def is_behind_link(self, name: str) -> bool:
        """Whether a folder on the way to the file is a link."""
        return any((self._repository / place).is_symlink() for place in PurePosixPath(name).parents[:-1])

    def _is_dataset(self, place: PurePosixPath) -> bool:
        if place not in self._known:
            self._known[place] = _identity(self._repository / place) == self._dataset
        return self._known[place]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        told = path.stat()
    except (OSError, ValueError):
        return None
    return told.st_dev, told.st_ino


def _names(output: str) -> list[str]:
    return [name for name in output.split("\0") if name]


def _printable(name: str) -> str:
    """A file's name as text for people: one line, whatever bytes it holds."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _listed(names: Iterable[str]) -> str:
    """A few names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(names[:NAMED])}{more})" if len(names) > 1 else names[0]
