"""Facts about checkpoints that travel: another worker goes on from them, a broken copy is never taken, none fails."""

import json
import os
import sys
import time

import pytest
from fleet_world import Processes, answers, wait_for
from ports import free_port

from mlx_tasks.files import atomic_write_text
from mlx_tasks.workspace import courier as module
from mlx_tasks.workspace.courier import Courier, courier
from mlx_tasks.workspace.paths import Places
from mlx_tasks.workspace.store import open_store


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """(endpoint, processes, how it is started): a real S3 server, with credentials in this process' environment."""
    processes, port = Processes(tmp_path_factory.mktemp("store")), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def start():
        processes.start("store", command, dict(os.environ))
        wait_for("the store", answers(url))

    start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        yield url, processes, start
    processes.stop_all()


@pytest.fixture(params=["folder", "s3"])
def places(request, tmp_path, s3):
    if request.param == "folder":
        return Places(tmp_path, tmp_path / "state", str(tmp_path / "remote"), "origin")
    places = Places(tmp_path, tmp_path / "state", f"s3://bucket-{os.urandom(4).hex()}/dvc", "origin", s3[0])
    store, folder = open_store(places)
    store.mkdir(folder.partition("/")[0])
    return places


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PERIOD_S", 0.05)


def checkpoint(folder, step, text):
    (folder / f"step_{step}").mkdir(parents=True)
    atomic_write_text(folder / f"step_{step}" / "state.json", text)


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def copied(places, expected):
    """Whether the store's index names so many files."""

    def look():
        store, root = open_store(places)
        try:
            index = json.loads(store.cat_file(f"{root}/checkpoints/run/train/index.json"))
        except FileNotFoundError:
            return False
        return len(index["files"]) == expected

    return look


class KilledError(Exception):
    """Stands for the end of a stage that did not succeed."""


def work(places, root, said):
    return courier(places, "run", "train", root, said.append)


def test_another_worker_goes_on_from_the_last_copy_and_a_stage_that_ends_removes_it(places, tmp_path):
    said, one, two = [], tmp_path / "one", tmp_path / "two"
    mine = one / ".checkpoints" / "train"
    with pytest.raises(KilledError), work(places, one, said):
        checkpoint(mine, 1, "first")
        wait_for("the copy", copied(places, 1), 10)
        checkpoint(mine, 2, "second")
        (mine / ".step_3.tmp").mkdir()
        (mine / ".step_3.tmp" / "half").write_text("half written")
        wait_for("the copy", copied(places, 2), 10)
        raise KilledError
    theirs = two / ".checkpoints" / "train"
    with work(places, two, said):
        assert content(theirs) == {"step_1/state.json": "first", "step_2/state.json": "second"}
        checkpoint(theirs, 3, "third")
        wait_for("the copy", copied(places, 3), 10)
    assert any("brought the checkpoints" in line for line in said)
    store, root = open_store(places)
    assert not store.exists(f"{root}/checkpoints/run/train")


def test_what_a_worker_has_itself_is_not_replaced_by_its_own_older_copy(places, tmp_path):
    said, root = [], tmp_path / "one"
    mine = root / ".checkpoints" / "train"
    with pytest.raises(KilledError), work(places, root, said):
        checkpoint(mine, 1, "first")
        wait_for("the copy", copied(places, 1), 10)
        raise KilledError
    checkpoint(mine, 2, "after the last copy")  # a kill came before the next look
    with pytest.raises(KilledError), work(places, root, said):
        assert len(content(mine)) == 2
        raise KilledError
    assert copied(places, 2)() and not any("brought" in line for line in said)


def test_the_newest_copy_wins_over_what_lay_here_before(places, tmp_path):
    said, one, two = [], tmp_path / "one", tmp_path / "two"
    for root, step in ((one, 1), (two, 2)):
        with pytest.raises(KilledError), work(places, root, said):
            checkpoint(root / ".checkpoints" / "train", step, f"by {root.name}")
            wait_for("the copy", copied(places, step), 10)
            raise KilledError
    with pytest.raises(KilledError), work(places, one, said):
        assert content(one / ".checkpoints" / "train")["step_2/state.json"] == "by two"
        raise KilledError


@pytest.mark.parametrize("harm", ["bytes", "gone", "outside"])
def test_a_broken_copy_is_not_taken(places, tmp_path, harm):
    said, one, two = [], tmp_path / "one", tmp_path / "two"
    with pytest.raises(KilledError), work(places, one, said):
        checkpoint(one / ".checkpoints" / "train", 1, "whole")
        wait_for("the copy", copied(places, 1), 10)
        raise KilledError
    store, root = open_store(places)
    base = f"{root}/checkpoints/run/train"
    index = json.loads(store.cat_file(f"{base}/index.json"))
    (digest, size) = index["files"]["step_1/state.json"]
    if harm == "bytes":
        store.pipe_file(f"{base}/objects/{digest}", b"other")
    elif harm == "gone":
        store.rm_file(f"{base}/objects/{digest}")
    else:
        index["files"] = {"../../escaped": [digest, size]}
        store.pipe_file(f"{base}/index.json", json.dumps(index).encode())
    with pytest.raises(KilledError), work(places, two, said):
        assert not (two / ".checkpoints" / "train").exists() and not list(tmp_path.rglob("escaped"))
        raise KilledError
    assert any("checkpoints stay on this worker for now: cannot bring their copy" in line for line in said)


def test_a_store_that_goes_away_costs_no_stage_and_is_used_again(s3, tmp_path):
    url, processes, start = s3
    places = Places(tmp_path, tmp_path / "state", "s3://away/dvc", "origin", url)
    open_store(places)[0].mkdir("away")
    said, root = [], tmp_path / "one"
    with pytest.raises(KilledError), work(places, root, said):
        checkpoint(root / ".checkpoints" / "train", 1, "first")
        wait_for("the copy", copied(places, 1), 10)
        processes.stop("store")
        checkpoint(root / ".checkpoints" / "train", 2, "second")
        wait_for("a word", lambda: any("cannot copy" in line for line in said), 60)
        start()  # it forgets everything: a store that was lost and is empty
        open_store(places)[0].mkdir("away")
        wait_for("the copy", copied(places, 2), 60)
        raise KilledError
    assert len([line for line in said if "cannot copy" in line]) == 1


def test_a_machine_alone_copies_nothing(tmp_path):
    places = Places(tmp_path, tmp_path / "state", str(tmp_path / "remote"))
    with work(places, tmp_path, []) as nothing:
        assert nothing is None and not isinstance(nothing, Courier)
        checkpoint(tmp_path / ".checkpoints" / "train", 1, "x")
        time.sleep(0.2)
    assert not (tmp_path / "remote").exists()
