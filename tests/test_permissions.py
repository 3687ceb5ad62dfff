"""Facts about other users of this machine: what is ours they neither read nor write, what they lay in our way fails."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import orchestration as o
import pytest

from mlx_tasks import locks
from mlx_tasks.errors import BusyError
from mlx_tasks.files import atomic_folder, atomic_write_text
from mlx_tasks.workspace.opening import configure_dvc
from mlx_tasks.workspace.paths import Places

OTHER = "nobody"
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runuser"), reason="only root becomes another user, by runuser"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def as_another(*command: str) -> int:
    """How a command of another user ended."""
    return subprocess.run(["runuser", "-u", OTHER, "--", *command], capture_output=True, timeout=30).returncode


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, as a state folder is that a person made: pytest's own are root's alone."""
    folder = Path("/var/tmp") / f"permissions-{os.getpid()}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
def test_another_user_cannot_put_a_pickle_where_dvc_reads_one(open_folder):
    """DVC itself makes its site cache, in a workspace as a run has one."""
    repository = o.make_repository(open_folder / "repository", ())
    state = open_folder / "state"
    state.mkdir()
    places = Places(repository, state, str(state / "remote"))
    configure_dvc(places, repository)
    (repository / "told").write_text("something")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "add", "told"], cwd=repository,
        capture_output=True, text=True, timeout=120, env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = next((state / "dvc-site" / "repo").iterdir())
    assert mode(state / "dvc-site") == 0o700
    assert mode(made.parent) & 0o002  # as DVC makes it: only the folder around it keeps others out
    assert as_another("touch", str(made / "planted")) != 0 and not (made / "planted").exists()
    assert as_another("ls", str(made)) != 0


def test_a_site_cache_that_was_open_is_closed(tmp_path):
    (tmp_path / "state" / "dvc-site").mkdir(parents=True)
    (tmp_path / "state" / "dvc-site").chmod(0o777)
    (tmp_path / ".dvc").mkdir()
    configure_dvc(Places(tmp_path, tmp_path / "state", str(tmp_path / "remote")), tmp_path)
    assert mode(tmp_path / "state" / "dvc-site") == 0o700


def test_a_folder_of_locks_that_somebody_laid_in_our_way_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(locks.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(locks, "Path", lambda path: tmp_path if path == "/tmp" else Path(path))
    ours = tmp_path / f"mlx-tasks-{os.getuid()}"
    ours.symlink_to(tmp_path)
    with pytest.raises(BusyError, match="is not a folder of this user's"):
        locks.locks_folder()
    ours.unlink()
    ours.write_text("")
    with pytest.raises(BusyError, match="is not a folder of this user's"):
        locks.locks_folder()
    ours.unlink()
    ours.mkdir(mode=0o777)
    ours.chmod(0o777)
    assert locks.locks_folder() == ours and mode(ours) == 0o700


@pytest.mark.parametrize("umask", [0o022, 0])
def test_a_private_file_is_private_before_it_is_whole(tmp_path, umask, monkeypatch):
    seen = []
    whole = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append(mode(Path(old))), whole(old, new)))
    before = os.umask(umask)
    try:
        atomic_write_text(tmp_path / "secret", "x", 0o600)
        atomic_write_text(tmp_path / "told", "x")
    finally:
        os.umask(before)
    assert seen == [0o600, 0o644] and mode(tmp_path / "secret") == 0o600


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o700), (0o022, 0o755)])
def test_a_folder_that_is_put_in_place_whole_is_open_to_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "made") as fresh:
            (fresh / "file").write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == mode
