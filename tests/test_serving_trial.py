"""Facts about trials: a version is tried in a child, and what failed there is not tried again."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import psutil
import pytest
from registry_workspace import write_small_bundle
from serving_world import bundle_with_reference
from test_serving_follower import Naming, one, until

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.serving.failed import Later, Refusals
from mlx_tasks.serving.follower import Follower
from mlx_tasks.serving.library import FolderSource, Served
from mlx_tasks.serving.store import Store
from mlx_tasks.serving.trial import TrialLimits, try_out
from mlx_tasks.serving.worker import Worker
from mlx_tasks.supervision import PARENT_VARIABLE


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("sound") / "1")


@pytest.fixture
def child(tmp_path, monkeypatch):
    """child(code): every trial runs this Python first."""

    def begin(code):
        place = tmp_path / "first"
        place.mkdir()
        guarded = "\n".join(f"    {line}" for line in code.splitlines())
        (place / "sitecustomize.py").write_text(
            f"import os, signal, sys, time\nif 'mlx_tasks.serving.trial' in sys.orig_argv:\n{guarded}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(place))

    return begin


@pytest.fixture
def serving():
    """serving(source) -> (worker, follower), ended with the test."""
    began = []

    def begin(source, **options):
        worker = Worker()
        follower = Follower(worker, source, 0.02, **options)
        for thread in (worker, follower):
            thread.start()
            began.append(thread)
        return worker, follower

    yield begin
    for thread in reversed(began):
        thread.stop()
        thread.join(30)


def tried(folder, limits=None, stopped=None):
    return try_out(Served("digits", "1", str(folder)), 32, stopped or threading.Event(), limits)


def trials():
    """Trials that still run, among this process's children."""
    return [one for one in psutil.Process().children() if "mlx_tasks.serving.trial" in one.cmdline()]


def test_a_sound_version_passes_and_its_measures_are_those_of_this_process(sound):
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.serving.engine import exact_multiple

    assert tried(sound) == exact_multiple(read_bundle(sound), 32)


def test_a_version_that_crashes_its_process_is_refused_and_the_signal_named(sound, child):
    child("os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(DataError, match="ended the process that tried it out by SIGSEGV"):
        tried(sound)


def test_a_version_that_hangs_is_refused_after_its_time_and_its_process_is_gone(sound, child):
    child("time.sleep(1000)")
    with pytest.raises(DataError, match=r"not ready within 0\.5 s, which is the limit \(--trial-time\)"):
        tried(sound, TrialLimits(seconds=0.5))
    assert not trials()


def test_a_version_that_takes_memory_without_end_is_stopped(sound, child, monkeypatch):
    """It takes 64 MiB every 20 ms, and never more than the limit and what one look misses."""
    monkeypatch.setattr("mlx_tasks.serving.trial.BESIDE", 200 << 20)
    child("kept = []\nwhile True:\n    kept.append(bytearray(os.urandom(1)) * (64 << 20))\n    time.sleep(0.02)")
    with pytest.raises(DataError, match=r"holds more than 0\.293 GiB .* the limit \(--trial-memory\)"):
        tried(sound, TrialLimits(memory=100 << 20))


def test_the_kernel_keeps_the_limit_where_it_can(sound, tmp_path):
    code = "from mlx_tasks.serving import trial\ntrial._limit(1 << 30)\nbytearray(2 << 30)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode == 1 and "MemoryError" in ended.stderr) or sys.platform != "linux"


@pytest.mark.parametrize("code", ["os.kill(os.getpid(), signal.SIGTERM)", "os._exit(1)"])
def test_an_end_that_says_nothing_about_the_version_is_no_refusal(sound, child, code):
    child(code)
    with pytest.raises(UnavailableError, match="the process that tries versions out"):
        tried(sound)


def test_a_trial_knows_no_secrets_and_ends_with_who_started_it(sound, child, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TASKS_SERVER_KEY", "a key of sixteen")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    place = tmp_path / "environment"
    child(f"import json\nopen({str(place)!r}, 'w').write(json.dumps(dict(os.environ)))\nos._exit(1)")
    with pytest.raises(UnavailableError):
        tried(sound)
    told = json.loads(place.read_text())
    assert not {"MLX_TASKS_SERVER_KEY", "MLFLOW_TRACKING_PASSWORD"} & set(told)
    assert told[PARENT_VARIABLE].split(",")[-1].startswith(f"{os.getpid()}:")


def test_a_server_that_stops_does_not_wait_for_a_trial(sound, child):
    child("time.sleep(1000)")
    stopped = threading.Event()
    threading.Timer(0.3, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="stopping"):
        tried(sound, stopped=stopped)
    assert time.monotonic() - began < 100 and not trials()


# What failed is remembered


def looks(follower, more=5):
    """Wait until the follower has looked at its source some more times."""
    count = len(follower._source.asked)
    until(lambda: len(follower._source.asked) >= count + more)


class Counting(Naming):
    """Counts the looks."""

    def __init__(self, answer, store=None):
        super().__init__(answer, store)
        self.asked = []

    def wanted(self):
        self.asked.append(1)
        return super().wanted()


def text_resolution(folder):
    """A bundle whose sampler.json says "8" for 8."""
    from mlx_tasks.models.digests import write_digests

    write_small_bundle(folder)
    told = json.loads((folder / "sampler.json").read_text())
    (folder / "sampler.json").write_text(json.dumps(told | {"resolution": "8"}))
    write_digests(folder)
    return folder


@pytest.mark.parametrize("how", ["wrong digest", "text for a number"])
def test_a_version_that_failed_is_fetched_once_named_and_the_old_one_serves_on(sound, tmp_path, serving, how):
    bad = Served("digits", "2", str(text_resolution(tmp_path / "2")), "d2")
    if how == "wrong digest":
        bad = Served("digits", "2", str(tmp_path / "copy"), "0" * 64)
        shutil.copytree(sound, tmp_path / "copy")
    source = Counting(Served("digits", "1", str(sound)), tmp_path / "store")
    worker, follower = serving(source)
    until(lambda: worker.ready)
    source.answer = bad
    until(lambda: "digits/2" in follower.refused)
    looks(follower)
    assert source.fetched == ["digits/1", "digits/2"]
    assert "digits/2 may not serve" in follower.problem and str(tmp_path / "store" / "refused") in follower.problem
    assert worker.current.model.version == "1" and one(worker).future.result(30).images is not None
    with pytest.raises(DataError, match="digits/2 may not serve"):  # asked for by name
        follower.loaded("digits/2").result(30)
    assert source.fetched == ["digits/1", "digits/2"]


def test_what_failed_is_not_tried_again_after_a_restart_until_its_digest_changes_or_its_file_goes(tmp_path, serving):
    folder, store = text_resolution(tmp_path / "2"), tmp_path / "store"
    source = Counting(Served("digits", "2", str(folder), "d", "c"), store)
    _, follower = serving(source)
    until(lambda: follower.refused)
    again = Counting(Served("digits", "2", str(folder), "d", "c"), store)
    _, follower = serving(again)
    until(lambda: len(again.asked) > 5)
    assert again.fetched == [] and "may not serve" in follower.problem
    again.answer = Served("digits", "2", str(folder), "d", "another")
    until(lambda: again.fetched)
    looks(follower)
    assert again.fetched == ["digits/2"]
    (store / "refused" / "digits" / "2.json").unlink()
    until(lambda: len(again.fetched) == 2)


def test_a_passing_reason_is_tried_again_after_longer_and_longer(sound, tmp_path, serving):
    class Away(Counting):
        def fetch(self, served):
            super().fetch(served)
            if len(self.fetched) < 4:
                raise UnavailableError("the store is away")

    source = Away(Served("digits", "1", str(sound)), tmp_path / "store")
    worker, follower = serving(source)
    until(lambda: worker.ready)
    assert len(source.fetched) == 4 and len(source.asked) > 4 and follower.refused == {}


def test_the_wait_doubles_and_ends_with_a_success():
    later = Later(10.0, most_s=25.0)
    waits = []
    for _ in range(4):
        later.failed("a", "away")
        waits.append(later._waits["a"].wait_s)
    assert waits == [10.0, 20.0, 25.0, 25.0]
    assert later.reason("a").startswith("away (tried again in 2") and later.reason("b") is None
    later.passed("a")
    assert later.reason("a") is None


def test_a_folder_that_was_mended_is_tried_again(tmp_path, serving):
    folder = text_resolution(tmp_path / "mine")
    worker, follower = serving(FolderSource(folder))
    until(lambda: follower.refused)
    assert set(follower.refused) == {"mine"} and not worker.ready
    write_small_bundle(folder)
    until(lambda: worker.ready)


def test_a_refusals_file_that_is_broken_refuses_nothing(tmp_path):
    refusals, served = Refusals(tmp_path), Served("digits", "1", "/x", "d", "c")
    refusals.add(served, "why")
    assert "why" in refusals.reason(served) and refusals.listed() == {"digits/1": "why"}
    for text in ("", "[1]", '{"reason": 1, "when": ""}'):
        (tmp_path / "digits" / "1.json").write_text(text)
        assert refusals.reason(served) is None and refusals.listed() == {}


# Two servers of one store


def copy_of(sound, problems=lambda place: ""):
    """bring's two questions: is a copy sound, and a download."""

    def download(folder):
        return shutil.copytree(sound, folder / "bundle")

    return problems, download


def test_a_copy_goes_once_no_server_uses_it_and_none_would_start_with_it(sound, tmp_path):
    one_server, other = Store(tmp_path, "digits", "digits@a"), Store(tmp_path, "digits", "digits@b")
    for version in ("1", "2", "3"):
        one_server.bring(version, *copy_of(sound))
    place = other.bring("2", *copy_of(sound))
    one_server.accepted(Served("digits", "3", str(tmp_path / "digits" / "3")))
    other.keep({"2"})
    assert all((tmp_path / "digits" / version).is_dir() for version in "123")  # the first server has them all
    one_server.keep(set())
    left = sorted(path.name for path in (tmp_path / "digits").glob("[0-9]*"))
    assert left == ["2", "3"] and place.is_dir()  # the other uses 2, and 3 is what the first would start with
    other.keep(set())
    assert not place.exists()


def test_a_copy_that_another_server_brings_is_waited_for_and_brought_once(sound, tmp_path):
    brought, going, enough = [], threading.Event(), threading.Event()

    def slow(folder):
        brought.append(folder)
        going.set()
        enough.wait(20)
        return copy_of(sound)[1](folder)

    stores = [Store(tmp_path, "digits", reference) for reference in ("digits@a", "digits@b")]
    threads = [threading.Thread(target=store.bring, args=("1", lambda place: "", slow)) for store in stores]
    threads[0].start()
    assert going.wait(20)
    threads[1].start()
    stores[1].keep(set())  # what is on its way is not swept up
    enough.set()
    for thread in threads:
        thread.join(30)
    assert len(brought) == 1 and (tmp_path / "digits" / "1" / "sampler.json").is_file()


def test_a_damaged_copy_is_brought_again_though_another_server_has_it_loaded(sound, tmp_path):
    one_server, other = Store(tmp_path, "digits", "digits@a"), Store(tmp_path, "digits", "digits@b")
    place = one_server.bring("1", *copy_of(sound))
    (place / "sampler.json").unlink()
    other.bring("1", *copy_of(sound, lambda place: "" if (place / "sampler.json").is_file() else "a file is gone"))
    assert (place / "sampler.json").is_file() and not list((tmp_path / "digits" / ".coming").iterdir())


@pytest.mark.parametrize("version", ["../1", "", "1/..", "latest", "\u0661"])
def test_a_version_is_a_number(tmp_path, version):
    with pytest.raises(DataError, match="versions are numbers"):
        Store(tmp_path, "digits", "digits@a").place(version)
