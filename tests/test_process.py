"""A stage's process: its exit code and record, its parents, its signals, the accelerator's lock."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orchestration as o
import psutil
import pytest

from mlx_tasks import locks
from mlx_tasks.errors import BusyError, CheckpointError, DataError, DivergedError, ExitCode, InterruptedStageError
from mlx_tasks.events import format_event, parse_event
from mlx_tasks.failures import classify
from mlx_tasks.supervision import PARENT_VARIABLE, ParentWatch, identity
from mlx_tasks.workspace import memory


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return o.make_repository(tmp_path_factory.mktemp("process"))


@pytest.fixture
def env(repository, tmp_path) -> dict[str, str]:
    return o.environment(repository, tmp_path / "state")


def start(repository: Path, env: dict[str, str], stage: str = "train") -> subprocess.Popen[str]:
    """A stage of the checkout itself, with no orchestration around it."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_tasks", stage, "--root", str(repository)],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=repository,
    )  # fmt: skip


def behave(env: dict[str, str], **behaviour: object) -> None:
    Path(env["TEST_BEHAVIOUR"]).write_text(json.dumps(behaviour))


def hang(env: dict[str, str], tmp_path: Path, **more: object) -> Path:
    """Make `train` hang; the file that it writes its pid to once it does."""
    started = tmp_path / "started"
    behave(env, train={"fails": 99, "kind": "hang", "started": str(started)}, **more)
    return started


def wait_for(condition, seconds: float = 30.0) -> float:
    """Seconds until the condition held."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - begin


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(autouse=True)
def _fresh(repository):
    for name in (".run", ".checkpoints", "work"):
        subprocess.run(["rm", "-rf", str(repository / name)], check=True)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("the rule, the value, the fix"), ExitCode.BAD_INPUT, "the rule, the value, the fix"),
        (DivergedError(7, 0.25), ExitCode.DIVERGED, "step 7; last finite loss 0.25"),
        (CheckpointError("the disk is full"), ExitCode.CHECKPOINT, "the disk is full"),
        (InterruptedStageError("stop"), ExitCode.INTERRUPTED, "stop"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
        (MemoryError("bad"), ExitCode.OUT_OF_MEMORY, "out of memory"),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed "
                      "buffer size of 8 bytes."), ExitCode.OUT_OF_MEMORY, "out of memory"),
        (RuntimeError("[malloc] Unable to allocate 17179869184 bytes."), ExitCode.OUT_OF_MEMORY, "out of memory"),
        (RuntimeError("shapes (2,) and (3,) do not match"), ExitCode.UNKNOWN, "RuntimeError: shapes"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x.bin"), ExitCode.UNAVAILABLE, "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/x.bin"), ExitCode.UNKNOWN, "x.bin"),
    ],
)  # fmt: skip
def test_each_failure_has_its_code_and_words(error, code, words, tmp_path):
    found, message = classify(error, tmp_path)
    assert found is code
    assert words in message


def test_a_refusal_ends_green_and_the_record_says_why(repository, env):
    behave(env, register={"refused": True})
    process = start(repository, env, "register")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.OK, output
    record = json.loads((repository / ".run/stages/register.json").read_text())
    assert record["exit_code"] == 0
    assert record["message"] == "the gate refused: not good enough"
    assert record["ended"] - record["started"] == pytest.approx(record["seconds"])
    assert record["peak_memory_mb"] > 10
    assert record["hardware"]["threads"] == 1


def test_an_unknown_key_in_params_is_bad_input_and_is_named(repository, env):
    params = repository / "params.yaml"
    before = params.read_text()
    params.write_text(before + "surprise: 1\n")
    try:
        process = start(repository, env, "validate")
        output, _ = process.communicate(timeout=60)
    finally:
        params.write_text(before)
    assert process.returncode == ExitCode.BAD_INPUT
    assert "surprise: there is no such key" in output
    assert "surprise" in json.loads((repository / ".run/stages/validate.json").read_text())["message"]


def test_sigterm_ends_a_stage_as_interrupted(repository, env, tmp_path):
    started = hang(env, tmp_path)
    process = start(repository, env)
    wait_for(started.exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == ExitCode.INTERRUPTED
    record = json.loads((repository / ".run/stages/train.json").read_text())
    assert "SIGTERM" in record["message"]


def test_a_stage_dies_within_two_seconds_of_its_parent(repository, env, tmp_path):
    started = hang(env, tmp_path)
    launcher = (
        "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"  # never sees its child's end
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", launcher, sys.executable, "-m", "mlx_tasks", "train", "--root", str(repository)],
        env=env, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: started.exists() and started.read_text())
    stage = int(started.read_text())
    parent.kill()
    parent.wait()
    assert wait_for(lambda: gone(stage)) < 2.0
    record = json.loads((repository / ".run/stages/train.json").read_text())
    assert record["exit_code"] == ExitCode.INTERRUPTED
    assert f"{parent.pid} is gone" in record["message"]


def test_a_named_grandparent_counts_and_a_reused_pid_does_not_pass_for_it(monkeypatch):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        monkeypatch.setenv(PARENT_VARIABLE, identity(sleeper.pid))
        watch = ParentWatch()
        assert watch.orphaned() is None
        monkeypatch.setenv(PARENT_VARIABLE, f"{sleeper.pid}:12345.0")
        assert f"process {sleeper.pid}" in str(ParentWatch().orphaned())
    finally:
        sleeper.kill()
    wait_for(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    assert f"process {sleeper.pid}" in str(watch.orphaned())  # dead, though nobody has reaped it
    sleeper.wait()


def test_two_stages_never_share_the_accelerator_and_a_dead_holder_frees_it(repository, env, tmp_path):
    started = hang(env, tmp_path)
    first = start(repository, env)
    wait_for(started.exists)
    second = start(repository, env, "tune")
    for line in second.stdout:
        if "waiting for the accelerator" in line:
            break
    assert f"held by pid {first.pid} (train in {repository})" in line
    told = json.loads((repository / ".run/progress/tune.json").read_text())
    assert "waiting for the accelerator" in told["text"]  # a follower sees why nothing happens
    assert not (repository / ".run/stages/tune.json").exists()
    first.kill()
    first.communicate()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == ExitCode.OK
    assert "got the accelerator" in output


def test_a_stage_without_the_accelerator_does_not_wait_for_it(repository, env, tmp_path):
    started = hang(env, tmp_path)
    first = start(repository, env)
    wait_for(started.exists)
    second = start(repository, env, "report")
    second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == ExitCode.OK


def test_a_lock_that_is_not_waited_for_names_its_holder(tmp_path):
    path = tmp_path / "some.lock"
    with locks.held(path, "me", what="the thing"):
        with pytest.raises(BusyError, match=rf"the thing is held by pid {os.getpid()} \(me\)"):
            with locks.held(path, "you", what="the thing", wait_s=0):
                pass
        path.unlink()  # a cleaner of /tmp took the file: the next one to come makes its own, and holds that
        with locks.held(path, "you", what="the thing", wait_s=0):
            assert "you" in locks.holder_of(path)
    with locks.held(path, "you", what="the thing", wait_s=0):
        pass


def test_the_kernels_and_mlxs_own_ways_to_run_out_of_memory_count_and_a_plain_kill_does_not():
    kills = memory.oom_kills()
    assert memory.memory_ran_out(ExitCode.OUT_OF_MEMORY, kills)
    assert memory.memory_ran_out(128 + signal.SIGSEGV, kills)
    assert not memory.memory_ran_out(128 + signal.SIGKILL, kills)
    assert not memory.memory_ran_out(ExitCode.UNKNOWN, kills)
    if sys.platform == "linux":
        assert memory.memory_ran_out(128 + signal.SIGKILL, kills - 1)


def test_events_survive_the_way_and_other_lines_are_no_events():
    event = {"event": "result", "text": "über\n::mlx-tasks:: ", "value": 1.5}
    line = format_event(event)
    assert "\n" not in line
    assert parse_event(line + "\n") == event
    assert parse_event("loss=0.3") is None
    assert parse_event("::mlx-tasks:: {broken") is None
    with pytest.raises(ValueError):
        format_event({"event": "result", "value": float("nan")})
