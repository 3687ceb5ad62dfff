"""Run ids as names, and the git that runs are made of: the user's checkout is never touched."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import orchestration as o
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_tasks.errors import DataError
from mlx_tasks.workspace import git
from mlx_tasks.workspace.paths import Places, run_slug, workspace_path
from mlx_tasks.workspace.snapshot import Snapshot, take_snapshot

RUN_IDS = st.text(min_size=1, max_size=250)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A small checkout with one commit."""
    folder = tmp_path / "checkout"
    (folder / "sub").mkdir(parents=True)
    (folder / "include").mkdir()
    for name, text in (("kept.txt", "1"), ("edited.txt", "1"), ("removed.txt", "1"), ("sub/deep.txt", "1")):
        (folder / name).write_text(text)
    (folder / ".gitignore").write_text("ignored/\n")
    o.run_git(folder, "init", "-q", "-b", "main")
    o.run_git(folder, "config", "user.name", "A User")
    o.run_git(folder, "config", "user.email", "user@example.org")
    o.run_git(folder, "add", "--all")
    o.run_git(folder, "commit", "-qm", "base")
    return folder


def edit(checkout: Path) -> None:
    """Every kind of uncommitted change at once."""
    (checkout / "edited.txt").write_text("2")
    (checkout / "removed.txt").unlink()
    (checkout / "include" / "new.yaml").write_text("new")
    (checkout / "include" / "staged.yaml").write_text("staged")
    o.run_git(checkout, "add", "include/staged.yaml")
    (checkout / "include" / "staged.yaml").write_text("staged, then edited")
    (checkout / "include" / " with space é.yaml").write_text("x")
    (checkout / "ignored").mkdir()
    (checkout / "ignored" / "secret.txt").write_text("no")


def fingerprint(checkout: Path) -> dict[str, str]:
    """Every file of the checkout and of .git but its objects: the branch, the index, the config, the logs."""
    found = {}
    for path in sorted(checkout.rglob("*")):
        name = str(path.relative_to(checkout))
        if path.is_file() and not name.startswith(".git/objects"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@given(RUN_IDS)
def test_a_slug_is_a_safe_name_for_files_and_branches(run_id):
    slug = run_slug(run_id)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*-[0-9a-f]{8}", slug)
    assert len(slug) <= 70
    assert workspace_path(Path("/state"), run_id).parent == Path("/state/workspaces")


@given(RUN_IDS, RUN_IDS)
def test_two_run_ids_never_share_a_slug_even_where_case_is_not_told_apart(one, other):
    assert (run_slug(one).lower() == run_slug(other).lower()) == (one == other)


def test_airflows_run_ids_stay_readable():
    run_id = "manual__2026-01-02T03:04:05.678901+00:00"
    assert run_slug(run_id).startswith("manual__2026-01-02T03-04-05-678901-00-00-")
    assert run_slug(run_id) != run_slug(run_id.replace("+", ":"))
    assert subprocess.run(["git", "check-ref-format", f"refs/heads/runs/{run_slug(run_id)}"]).returncode == 0
    with pytest.raises(ValueError, match="empty"):
        run_slug("")


def test_a_clean_checkout_is_its_own_snapshot(checkout):
    taken = take_snapshot(checkout, "why")
    assert taken == Snapshot(o.run_git(checkout, "rev-parse", "HEAD").strip())


def test_a_snapshot_holds_every_uncommitted_edit_and_leaves_the_checkout_as_it_was(checkout):
    edit(checkout)
    before, status = fingerprint(checkout), o.run_git(checkout, "--no-optional-locks", "status", "--porcelain")
    taken = take_snapshot(checkout, "why")
    assert fingerprint(checkout) == before
    assert o.run_git(checkout, "--no-optional-locks", "status", "--porcelain") == status
    assert set(taken.edited) == {"edited.txt", "removed.txt"}
    assert (
        o.run_git(checkout, "rev-parse", f"{taken.commit}^").strip() == o.run_git(checkout, "rev-parse", "HEAD").strip()
    )
    listed = o.run_git(checkout, "ls-tree", "-r", "-z", "--name-only", taken.commit)
    assert set(listed.strip("\0").split("\0")) == {
        ".gitignore", "kept.txt", "edited.txt", "sub/deep.txt",
        "include/new.yaml", "include/staged.yaml", "include/ with space é.yaml",
    }  # fmt: skip
    assert o.run_git(checkout, "show", f"{taken.commit}:edited.txt") == "2"
    assert o.run_git(checkout, "show", f"{taken.commit}:include/staged.yaml") == "staged, then edited"
    assert o.run_git(checkout, "log", "-1", "--format=%an %s", taken.commit).strip() == "A User why"


def test_an_edit_in_the_second_in_which_the_index_was_written_is_seen(checkout):
    """Git compares whole seconds, and reads a file whose time is not before the index's: a copy must keep that time."""
    o.run_git(checkout, "config", "core.trustctime", "false")
    file, second = checkout / "edited.txt", (1_700_000_000, 1_700_000_000)
    file.write_text("3")
    os.utime(file, second)
    o.run_git(checkout, "commit", "-qam", "three")
    os.utime(checkout / ".git" / "index", second)
    file.write_text("4")
    os.utime(file, second)
    assert o.run_git(checkout, "show", f"{take_snapshot(checkout, 'why').commit}:edited.txt") == "4"


def test_a_commit_needs_no_identity_of_the_users(checkout, monkeypatch, tmp_path):
    o.run_git(checkout, "config", "--unset", "user.name")
    o.run_git(checkout, "config", "--unset", "user.email")
    o.run_git(checkout, "config", "user.useConfigOnly", "true")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    (checkout / "include" / "new.yaml").write_text("new")
    taken = take_snapshot(checkout, "why")
    assert o.run_git(checkout, "log", "-1", "--format=%an", taken.commit).strip() == "mlx-tasks"


def test_a_snapshot_ignores_what_a_git_hook_leaves_in_the_environment(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "some-index"))
    assert not take_snapshot(checkout, "why").edited


def test_only_the_top_of_a_checkout_with_a_commit_will_do(checkout, tmp_path):
    git.check_checkout(checkout)
    with pytest.raises(DataError, match="set ADO_REPOSITORY to"):
        git.check_checkout(checkout / "sub")
    with pytest.raises(DataError, match="no git checkout with a commit"):
        git.check_checkout(tmp_path)


def test_a_worktree_is_made_over_what_a_killed_attempt_left(checkout, tmp_path):
    path = tmp_path / "state" / "workspaces" / "one"
    git.add_worktree(checkout, path, "HEAD")
    (path / ".git").unlink()  # half made, in a way that git itself refuses to go on from
    git.add_worktree(checkout, path, "HEAD")
    assert (path / "sub" / "deep.txt").read_text() == "1"
    assert len(o.run_git(checkout, "worktree", "list").splitlines()) == 2


def test_a_run_branch_can_be_checked_out_by_the_user(checkout, tmp_path):
    path = tmp_path / "one"
    git.add_worktree(checkout, path, "HEAD")
    (path / "params.yaml").write_text("seed: 1\n")
    commit = git.commit_files(path, "runs/one", "params", ("params.yaml", "absent.lock"))
    assert git.commit_files(path, "runs/one", "again", ("params.yaml",)) == commit
    o.run_git(checkout, "checkout", "-q", "runs/one")
    assert (checkout / "params.yaml").read_text() == "seed: 1\n"


def test_a_git_lock_of_another_process_is_waited_for(checkout, tmp_path):
    lock = checkout / ".git" / "refs" / "heads" / "runs"
    lock.mkdir()
    (lock / "one.lock").touch()
    path = tmp_path / "one"
    git.add_worktree(checkout, path, "HEAD")
    release = subprocess.Popen(["sh", "-c", f"sleep 0.4; rm {lock / 'one.lock'}"])
    git.commit_files(path, "runs/one", "params", ())
    release.wait()
    assert o.run_git(checkout, "rev-parse", "runs/one") == o.run_git(checkout, "rev-parse", "HEAD")


def test_places_come_from_the_environment(monkeypatch, tmp_path):
    for name in ("ADO_STATE", "ADO_REPOSITORY", "ADO_DVC_REMOTE", "ADO_GIT_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    here = Places.from_environment()
    assert (here.repository, here.state, here.git_remote) == (tmp_path, tmp_path / ".state", None)
    assert here.dvc_remote == str(tmp_path / ".state" / "dvc-remote")
    monkeypatch.setenv("ADO_DVC_REMOTE", "s3://bucket/x")
    assert Places.from_environment().dvc_remote == "s3://bucket/x"


def test_a_fresh_clone_finds_the_end_of_a_run_whose_branch_it_has_from_its_origin(checkout, tmp_path):
    """A version names the commit before its own registration; the run's branch went on from there."""
    from mlx_tasks.registry.mlflow_registry import Version
    from mlx_tasks.workspace.reproduce import _end_of_run

    o.run_git(checkout, "switch", "-qc", "runs/one")
    o.run_git(checkout, "commit", "-q", "--allow-empty", "-m", "artifacts")
    named = o.run_git(checkout, "rev-parse", "HEAD").strip()
    o.run_git(checkout, "commit", "-q", "--allow-empty", "-m", "artifacts and report")
    end = o.run_git(checkout, "rev-parse", "HEAD").strip()
    o.run_git(checkout, "switch", "-q", "main")
    o.run_git(tmp_path, "clone", "-q", str(checkout), "clone")
    version = Version("model", "1", None, {"mlx_tasks.commit": named, "mlx_tasks.run": "one"})
    for repository in (tmp_path / "clone", checkout):
        assert _end_of_run(Places(repository, tmp_path / "state", "remote", "origin"), version) == end
