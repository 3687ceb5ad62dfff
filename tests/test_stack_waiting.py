"""What a still run waits for, told from what Airflow and this machine say."""

import subprocess
import sys

import pytest

from mlx_tasks.fleet import checks
from mlx_tasks.stack import waiting
from mlx_tasks.stack.health import silent_parts

HOLD = """
import sys, time
from pathlib import Path
from mlx_tasks.locks import held

with held(Path(sys.argv[1]), sys.argv[2], what="the accelerator"):
    print("held", flush=True)
    time.sleep(600)
"""


def worker(name, state, *queues):
    return {"worker_name": name, "state": state, "queues": list(queues)}


def test_a_queue_that_no_living_worker_takes_is_named():
    told = waiting.workerless(["mlx", "default"], [worker("a", "idle", "default"), worker("b", "offline", "mlx")])
    assert len(told) == 1 and "'mlx'" in told[0] and "ADO_QUEUES=mlx" in told[0]
    assert len(waiting.workerless(["mlx", "default"], [])) == 2
    assert waiting.workerless(["mlx"], [worker("all", "running")]) == [], "a worker without queues takes all"
    assert waiting.workerless(["mlx"], None) == [], "Airflow runs the tasks itself"


def test_a_pool_without_slots_or_that_is_not_there_is_named():
    assert "0 slots" in waiting.slotless("mlx", {"slots": 0}, "http://x")[0]
    assert "no pool 'mlx'" in waiting.slotless("mlx", None, "http://x")[0]
    assert waiting.slotless("mlx", {"slots": 1}, "http://x") == waiting.slotless("m", {"slots": -1}, "http://x") == []


def test_the_doctor_names_a_pool_without_slots_and_one_that_is_not_there():
    whole = dict.fromkeys(checks.POOLS, 1)
    assert [one.state for one in checks.pools(whole, "http://x")] == ["ok"]
    for name in checks.POOLS:
        [empty] = checks.pools(whole | {name: 0}, "http://x")
        assert empty.state == "wrong" and f"{name} has 0 slots" in empty.told and "http://x/pools" in empty.fix
        [absent] = checks.pools({other: 1 for other in checks.POOLS if other != name}, "http://x")
        assert absent.state == "wrong" and f"{name} is not there" in absent.told


def test_an_old_heartbeat_is_named_with_its_time():
    health = {
        "scheduler": {"status": "unhealthy", "latest_scheduler_heartbeat": "2026-01-02T03:04:05.678+00:00"},
        "dag_processor": {"status": "healthy"}, "triggerer": {"status": None, "latest_triggerer_heartbeat": None},
    }  # fmt: skip
    assert silent_parts(health) == {
        "scheduler": "no heartbeat since 2026-01-02 03:04:05 UTC", "triggerer": "no heartbeat yet",
    }  # fmt: skip


@pytest.mark.parametrize("own", [False, True])
def test_the_accelerator_in_other_hands_is_told_and_in_the_runs_own_it_is_not(tmp_path, monkeypatch, own):
    monkeypatch.setenv("MLX_TASKS_LOCKS", str(tmp_path / "locks"))
    workspace = tmp_path / "workspaces" / "mine"
    where = workspace if own else "/home/somebody/else"
    command = [sys.executable, "-c", HOLD, str(tmp_path / "locks" / "metal.lock"), f"train in {where}"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        task = {"task_id": "train", "map_index": -1}
        told = waiting._accelerator(task, workspace / ".run" / "progress")
    finally:
        holder.kill()
        holder.wait()
    assert told == [] if own else f"pid {holder.pid} (train in {where})" in told[0]
    assert waiting._accelerator(task, workspace / ".run" / "progress") == [], "a dead holder holds nothing"
