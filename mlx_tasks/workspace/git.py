"""The few git commands that runs need. None touches the user's branch, index or files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mlx_tasks.errors import DataError, UnavailableError

MAX_SNAPSHOT_FILE_MB = 50
_LOCKED = ("file exists", "cannot lock", "could not lock", "unable to lock", "another git process")
_TRIES = 8


@dataclass(frozen=True)
class Snapshot:
    """The commit a run starts from.

    Attributes:
        commit: the checkout's HEAD, or a child of it that holds the uncommitted edits too.
        edited: whether there were any.
        left_out: untracked files too large to be taken along.
    """

    commit: str
    edited: bool
    left_out: tuple[str, ...] = ()


def git(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """A git command's output; one that meets another process's lock is tried again.  Raises: UnavailableError."""
    settings = ["-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "advice.detachedHead=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    for attempt in range(_TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=_environment(environment))
        except FileNotFoundError:
            raise UnavailableError("git is not installed: every run is kept as a commit, install git") from None
        if done.returncode == 0:
            return done.stdout.strip()
        if attempt < _TRIES - 1 and any(text in done.stderr.lower() for text in _LOCKED):
            time.sleep(0.05 * 2**attempt)
            continue
        break
    raise UnavailableError(f"git {' '.join(arguments[:3])} failed in {folder}: {done.stderr.strip() or done.stdout}")


def check_checkout(repository: Path) -> None:
    """Raises: DataError unless `repository` is the top of a git checkout that has a commit."""
    try:
        top = Path(git(repository, "rev-parse", "--show-toplevel"))
        git(repository, "rev-parse", "--verify", "HEAD^{commit}")
    except UnavailableError as error:
        raise DataError(f"{repository} is no git checkout with a commit: clone the repository ({error})") from None
    if top.resolve() != repository.resolve():
        raise DataError(f"{repository} is not the top of its checkout: set ADO_REPOSITORY to {top}")


def snapshot(repository: Path, message: str, exclude: tuple[str, ...] = ()) -> Snapshot:
    """The checkout as a commit: HEAD, or HEAD plus its uncommitted edits and untracked files that git does not ignore.

    Works on a copy of the index, so the checkout's own stays as it is.

    Args:
        exclude: untracked paths that are not code (a dataset), relative to the checkout.
    """
    head = git(repository, "rev-parse", "HEAD")
    exclude = tuple(path for path in exclude if _untracked(repository, f":(top,literal){path}"))
    too_large = _large_untracked(repository, exclude)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        own = repository / git(repository, "rev-parse", "--git-path", "index")
        if own.exists():
            shutil.copyfile(own, index)
        environment = {"GIT_INDEX_FILE": str(index)}
        skipped = [f":(exclude,top,literal){path}" for path in (*exclude, *too_large)]
        git(repository, "add", "--all", "--", ":/", *skipped, environment=environment)
        tree = git(repository, "write-tree", environment=environment)
    if tree == git(repository, "rev-parse", "HEAD^{tree}"):
        return Snapshot(head, edited=False, left_out=too_large)
    commit = git(repository, "commit-tree", tree, "-p", head, "-m", message, environment=identity(repository))
    return Snapshot(commit, edited=True, left_out=too_large)


def has_commit(repository: Path, commit: str) -> bool:
    """Whether the repository holds a commit."""
    try:
        git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
    except UnavailableError:
        return False
    return True


def is_in_commit(repository: Path, commit: str, path: str) -> bool:
    """Whether a commit holds a file or folder (path relative to the top)."""
    try:
        git(repository, "cat-file", "-e", f"{commit}:{path}")
    except UnavailableError:
        return False
    return True


def add_worktree(repository: Path, path: Path, commit: str) -> None:
    """A fresh worktree at `path`, detached at `commit`; what a killed attempt left there is removed first."""
    remove_worktree(repository, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    git(repository, "worktree", "add", "--detach", "--force", str(path), commit)


def remove_worktree(repository: Path, path: Path) -> None:
    """Remove a worktree's folder and git's note of it, if there is one."""
    if path.exists():
        shutil.rmtree(path)
    git(repository, "worktree", "prune")


def commit_files(worktree: Path, branch: str, message: str, files: tuple[str, ...]) -> str:
    """Commit files of a detached worktree and point `branch` at the commit (HEAD itself where nothing changed)."""
    git(worktree, "add", "--force", "--", *(name for name in files if (worktree / name).exists()))
    try:
        git(worktree, "diff", "--cached", "--quiet")
    except UnavailableError:
        git(worktree, "commit", "--quiet", "--no-verify", "-m", message, environment=identity(worktree))
    commit = git(worktree, "rev-parse", "HEAD")
    git(worktree, "update-ref", f"refs/heads/{branch}", commit)
    return commit


def identity(folder: Path) -> dict[str, str]:
    """Author and committer for a commit: the user's own, or a stand-in where git knows none."""
    try:
        git(folder, "var", "GIT_COMMITTER_IDENT")
        git(folder, "var", "GIT_AUTHOR_IDENT")
        return {}
    except UnavailableError:
        name, mail = "mlx-tasks", "mlx-tasks@localhost"
        return {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in
                (("NAME", name), ("EMAIL", mail))}  # fmt: skip


def _large_untracked(repository: Path, exclude: tuple[str, ...]) -> tuple[str, ...]:
    skipped = [f":(exclude,top,literal){path}" for path in exclude]
    limit = MAX_SNAPSHOT_FILE_MB * 2**20
    paths = _untracked(repository, ":/", *skipped)
    return tuple(name for name in paths if _size(repository / name) > limit)


def _untracked(repository: Path, *pathspecs: str) -> list[str]:
    """Files that git neither tracks nor ignores, relative to the top."""
    listed = git(repository, "ls-files", "--others", "--exclude-standard", "-z", "--full-name", "--", *pathspecs)
    return [name for name in listed.split("\0") if name]


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    """This process's environment without what a git hook would leave in it, with git quiet and in English."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(extra or {})}
