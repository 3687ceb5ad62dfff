"""Limits of time: generous, set by the environment, told as what they are, and never retried."""

import json
import subprocess
import sys
from datetime import timedelta

import orchestration as o
import pytest

from mlx_tasks.catalog import STAGES
from mlx_tasks.errors import RETRYABLE, DataError, ExitCode
from mlx_tasks.time_limits import AROUND_H, HOURS, limit_hours, task_timeout

DEAF = """
import signal, time
from pathlib import Path
from mlx_tasks import time_limits

time_limits.GRACE_S = 0.2
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
with time_limits.within("train", lambda code, words: Path("told").write_text(f"{int(code)} {words}")):
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return o.make_repository(tmp_path_factory.mktemp("limits"))


def test_every_stage_has_a_limit_that_a_training_of_days_does_not_reach():
    assert set(HOURS) == set(STAGES) and min(HOURS.values()) >= 72 and HOURS["train"] >= 24 * 14


def test_the_setting_names_all_stages_or_some_and_the_last_word_holds():
    assert limit_hours("train", "") == HOURS["train"]
    assert limit_hours("train", "5") == limit_hours("tune", "5") == 5
    assert limit_hours("train", "5, train=1000") == 1000 and limit_hours("tune", "5, train=1000") == 5
    assert limit_hours("train", "train=0.5") == 0.5 and limit_hours("tune", "train=0.5") == HOURS["tune"]


@pytest.mark.parametrize("text", ["long", "-1", "nan", "inf", "train=", "trian=5", "train=5;tune=6"])
def test_a_setting_that_says_no_hours_is_refused_with_its_value(text):
    with pytest.raises(DataError, match="ADO_LIMIT_HOURS"):
        limit_hours("train", text)


def test_the_tasks_limit_leaves_room_for_what_is_no_computing_and_none_is_none(monkeypatch):
    monkeypatch.setenv("ADO_LIMIT_HOURS", "train=10,tune=0")
    assert task_timeout("train") == timedelta(hours=10 + AROUND_H)
    assert task_timeout("tune") is None and task_timeout() == timedelta(hours=AROUND_H)


def test_a_stage_that_hangs_ends_by_its_own_kind_which_is_not_retried_and_goes_on_with_a_longer_limit(
    repository, tmp_path
):
    env = o.environment(repository, tmp_path / "state", ADO_LIMIT_HOURS="train=0.0005", MLX_TASKS_EVENTS="1")
    run = o.open_run(env)
    behave = {"train": {"fails": 1, "kind": "hang", "started": str(tmp_path / "started")}}
    (tmp_path / "state" / "behaviour.json").write_text(json.dumps(behave))
    _, validated, _ = o.node(env, run, "validate")
    code, result, output = o.node(env, run, "train", {"validate": validated["lock"]})
    assert code == ExitCode.TIMED_OUT and ExitCode.TIMED_OUT not in RETRYABLE, output
    assert "limit of 0.0005 h" in result["message"] and "train=HOURS" in result["message"]
    assert list((o.workspace(env, run) / ".checkpoints").rglob("tries")), "what the stage kept is there"
    env["ADO_LIMIT_HOURS"] = "train=1"
    assert o.node(env, run, "train", {"validate": validated["lock"]})[0] == ExitCode.OK


def test_a_stage_that_does_not_listen_is_ended_all_the_same(tmp_path):
    environment = {"ADO_LIMIT_HOURS": "0.0001", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", DEAF], cwd=tmp_path, env=environment, timeout=50)
    assert done.returncode == ExitCode.TIMED_OUT
    assert (tmp_path / "told").read_text().startswith("17 took longer than its limit of 0.0001 h")
