"""The few git commands that runs need. None touches the user's branch, index or files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from mlx_tasks.errors import DataError, UnavailableError

LIMIT_VARIABLE = "ADO_GIT_TIMEOUT_S"
NETWORK_LIMIT_S = 300.0
"""How long a push or a fetch may take, where ADO_GIT_TIMEOUT_S does not say."""
LOCAL_LIMIT_S = 900.0
"""How long any other command may take: a large checkout on a slow disk needs minutes."""
_LOCKED = ("file exists", "cannot lock", "could not lock", "unable to lock", "another git process")
_HOPELESS = (
    "authentication failed",
    "could not read username",
    "could not read password",
    "permission denied (",
    "host key verification failed",
    "does not appear to be a git repository",
)
_TRIES = 8
_SETTINGS = [
    word
    for setting in (
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "core.safeCRLF=false",
        "commit.gpgSign=false",
        "push.gpgSign=false",
        "push.followTags=false",
        "push.recurseSubmodules=no",
        "fetch.recurseSubmodules=no",
        "advice.detachedHead=false",
    )
    for word in ("-c", setting)
]
"""No program of a checkout's settings but its filters is run, and nothing but what is named is pushed or fetched."""
_NOT_OURS = (
    "GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR"
    " GIT_PREFIX GIT_NAMESPACE GIT_QUARANTINE_PATH GIT_CONFIG_PARAMETERS GIT_CONFIG GIT_SHALLOW_FILE GIT_GRAFT_FILE"
    " GIT_REPLACE_REF_BASE GIT_IMPLICIT_WORK_TREE GIT_INTERNAL_SUPER_PREFIX GIT_LITERAL_PATHSPECS GIT_GLOB_PATHSPECS"
    " GIT_NOGLOB_PATHSPECS GIT_ICASE_PATHSPECS GIT_EXTERNAL_DIFF GIT_DIFF_OPTS GIT_ATTR_SOURCE GIT_INDEX_VERSION"
    " GIT_AUTHOR_DATE GIT_COMMITTER_DATE GIT_DEFAULT_HASH"
).split()
"""What a hook or a shell leaves in the environment that leads a command elsewhere, or has it read otherwise."""


def git(
    folder: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    paths: list[str] | None = None,
    limit_s: float = LOCAL_LIMIT_S,
) -> str:
    """A git command's output; one that meets another process's lock is tried again.

    Bytes that are no UTF-8 come as surrogates, and are read back as they were.

    Args:
        paths: for commands with `-z --stdin`, what they read there.
        limit_s: after this it is killed, with whatever it started.

    Raises: UnavailableError.
    """
    command = ["git", "-C", str(folder), *_SETTINGS, *arguments]
    stdin = "".join(f"{path}\0" for path in paths or []).encode("utf-8", "surrogateescape")
    what = without_passwords(f"git {' '.join(arguments[:3])}")
    for attempt in range(_TRIES):
        code, output, error = _run(command, stdin, _environment(environment), limit_s, what)
        if code == 0:
            return output.decode("utf-8", "surrogateescape").rstrip("\n")
        told = (error or output).decode("utf-8", "replace").strip()
        if attempt < _TRIES - 1 and any(text in told.lower() for text in _LOCKED):
            time.sleep(0.05 * 2**attempt)
            continue
        raise UnavailableError(f"{what} failed in {folder}: {without_passwords(told)}")
    raise AssertionError("unreachable")


def push(repository: Path, remote: str, branch: str) -> None:
    """Put a run's branch on the remote, whatever it has under that name.  Raises: as `exchange`."""
    exchange(repository, "push", remote, f"+refs/heads/{branch}:refs/heads/{branch}")


def fetch(repository: Path, remote: str, branch: str) -> None:
    """Bring a run's branch from the remote.  Raises: as `exchange`."""
    exchange(repository, "fetch", remote, f"+refs/heads/{branch}:refs/heads/{branch}")


def exchange(repository: Path, verb: str, remote: str, *refspecs: str) -> None:
    """Push to a remote, or fetch from it, for a limited time.

    Raises: UnavailableError where it does not answer in time; DataError where it refuses who asks, or is none.
    """
    limit_s, place = network_limit_s(), without_passwords(remote)
    try:
        git(repository, verb, "--quiet", remote, *refspecs, environment=_unattended(repository), limit_s=limit_s)
    except UnavailableError as error:
        told = f"ADO_GIT_REMOTE {place}: {error}; try `git -C {repository} {verb} {place}` by hand"
        if any(text in str(error).lower() for text in _HOPELESS):
            raise DataError(f"{told}: nobody is there to type a password, so git must find one or a key") from None
        raise UnavailableError(told) from None


def network_limit_s() -> float:
    """Seconds that a push or a fetch may take.  Raises: DataError unless ADO_GIT_TIMEOUT_S is a number above 0."""
    asked = os.environ.get(LIMIT_VARIABLE)
    with contextlib.suppress(ValueError):
        limit_s = float(asked) if asked else NETWORK_LIMIT_S
        if 0 < limit_s < 1e9:
            return limit_s
    raise DataError(f"{LIMIT_VARIABLE} must be a number of seconds above 0, got {asked!r}")


def without_passwords(text: str) -> str:
    """A text with what stands before the `@` of an address in it made unreadable."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _run(
    command: list[str], stdin: bytes, environment: dict[str, str], limit_s: float, what: str
) -> tuple[int, bytes, bytes]:
    """Exit code, output, errors. Files and not pipes: a master of ssh that stays would hold a pipe open."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=given, stdout=output, stderr=errors, env=environment, start_new_session=True
            )
        except FileNotFoundError:
            raise UnavailableError("git is not installed: every run is kept as a commit, install git") from None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{what} took more than {limit_s:g} s and was ended ({LIMIT_VARIABLE})") from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        return code, output.read(), errors.read()


def check_checkout(repository: Path) -> None:
    """Raises: DataError unless `repository` is the top of a git checkout that has a commit."""
    try:
        top = Path(git(repository, "rev-parse", "--show-toplevel"))
        git(repository, "rev-parse", "--verify", "HEAD^{commit}")
    except UnavailableError as error:
        raise DataError(f"{repository} is no git checkout with a commit: clone the repository ({error})") from None
    if top.resolve() != repository.resolve():
        raise DataError(f"{repository} is not the top of its checkout: set ADO_REPOSITORY to {top}")


def has_commit(repository: Path, commit: str) -> bool:
    """Whether the repository holds a commit."""
    try:
        git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
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
        git(worktree, "diff", "--cached", "--quiet", "--no-ext-diff")
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


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    """This process's environment without what leads git elsewhere, with git quiet and in English."""
    kept = {k: v for k, v in os.environ.items() if k not in _NOT_OURS}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(extra or {})}


def _unattended(repository: Path) -> dict[str, str]:
    """No question is asked that nobody would answer: not by ssh, not by a window for passwords."""
    quiet = {"SSH_ASKPASS": "true", "SSH_ASKPASS_REQUIRE": "never"}
    if os.environ.get("GIT_SSH_COMMAND") or os.environ.get("GIT_SSH"):
        return quiet
    with contextlib.suppress(UnavailableError):  # it ends with 1 where nothing is set
        git(repository, "config", "--get", "core.sshCommand")
        return quiet
    return {**quiet, "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=20"}
