"""Training over several processes and machines equals one; whoever dies, it ends in time and goes on."""

import csv
import json
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from ring_rank import batch, learner
from ring_world import (
    WEIGHTS,
    Sshd,
    alive,
    checkout,
    finish,
    members,
    ring_workspace,
    small_ring,
    start,
    step_of,
    told,
    wait_for,
)
from safetensors.numpy import load_file

from mlx_tasks.config_training import Train
from mlx_tasks.errors import RETRYABLE, DataError, ExitCode, UnavailableError
from mlx_tasks.files import read_json, sha256_file
from mlx_tasks.hosts.places import Host, machines, ordered, own_addresses
from mlx_tasks.locks import held
from mlx_tasks.params import parse_config

LONG = {"resolutions": [4], "batch_size": 8, "steps": 50, "noise_schedule": "learned", "checkpoint_every": 25}
"""Long enough for a learned schedule to be measured and followed."""


def arrays(root: Path) -> dict[str, np.ndarray]:
    return load_file(root / WEIGHTS)


def losses(root: Path) -> np.ndarray:
    with (root / "work/plots/train.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def gap(one: Path, two: Path) -> float:
    """Largest difference of a weight, over all arrays."""
    a, b = arrays(one), arrays(two)
    assert set(a) == set(b)
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_gradient_is_that_of_one_process_to_rounding(ranks, tmp_path):
    """Eleven images, so uneven shares; one rank takes two at a time; each image weighs what a learned schedule says."""
    small_ring("steps", ranks, tmp_path / "ring")
    found = [dict(np.load(tmp_path / "ring" / f"arrays-{rank}.npz")) for rank in range(ranks)]
    one = learner()
    rows = json.loads((tmp_path / "ring" / "rows-0.json").read_text())
    for step, row in enumerate(rows):
        loss, norm = one.step(batch(step), 1e-3, 0.9)
        assert row == pytest.approx([loss.item(), norm.item()], rel=1e-6 if step == 0 else 1e-4)
        gradients = dict(np.load(tmp_path / "ring" / f"gradients-{step}.npz"))
        scale = max(float(np.abs(gradient).max()) for gradient in one.seen.values())
        for name, gradient in one.seen.items():
            np.testing.assert_allclose(gradients[name], gradient, atol=(1e-6 if step == 0 else 1e-3) * scale)
    for rank in range(1, ranks):
        assert set(found[rank]) == set(found[0])
        assert all(np.array_equal(found[rank][name], array) for name, array in found[0].items())


def test_ranks_that_round_otherwise_take_rank_0s_arrays_and_one_that_errs_is_named(tmp_path):
    small_ring("1e-6", 2, tmp_path / "rounding")
    found = [dict(np.load(tmp_path / "rounding" / f"arrays-{rank}.npz")) for rank in range(2)]
    assert json.loads((tmp_path / "rounding" / "rows-0.json").read_text()) == ""
    assert all(np.array_equal(found[1][name], array) for name, array in found[0].items())
    small_ring("0.5", 2, tmp_path / "wrong")
    assert "rank 1 computes other weights" in json.loads((tmp_path / "wrong" / "rows-0.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    root = ring_workspace(tmp_path_factory.mktemp("alone"), 1)
    finish(start(root))
    return root


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    root = ring_workspace(tmp_path_factory.mktemp("two"), 2)
    output = finish(start(root))
    assert "2 ranks: 127.0.0.1, 127.0.0.1" in output
    return root


def test_two_ranks_end_where_one_process_does(alone, two):
    np.testing.assert_allclose(losses(two), losses(alone), rtol=2e-4)
    assert gap(alone, two) < 5e-4
    assert read_json(two / "work/teacher/lineage.json")["ranks"] == 2


def test_a_member_that_is_killed_is_named_and_the_retry_ends_with_the_same_bytes(two, tmp_path):
    root = ring_workspace(tmp_path / "torn", 2)
    process = start(root)
    wait_for(lambda: step_of(root) >= 8, process=process)
    members(process)[0].send_signal(signal.SIGKILL)
    output = finish(process, ExitCode.UNAVAILABLE, seconds=40)
    assert ExitCode.UNAVAILABLE in RETRYABLE
    assert "rank 1 (127.0.0.1) ended by signal 9" in told(root) and "goes on from its checkpoint" in told(root), output
    reached = step_of(root)
    assert f"step={reached}" in finish(start(root))
    assert sha256_file(root / WEIGHTS) == sha256_file(two / WEIGHTS)


def test_when_rank_0_is_killed_the_others_end_and_the_retry_ends_with_the_same_bytes(two, tmp_path):
    root = ring_workspace(tmp_path / "torn", 2)
    process = start(root)
    wait_for(lambda: step_of(root) >= 8, process=process)
    others = members(process)
    process.kill()
    process.wait()
    assert others and wait_for(lambda: not any(map(alive, others)), 20) < 20
    assert f"step={step_of(root)}" in finish(start(root))
    assert sha256_file(root / WEIGHTS) == sha256_file(two / WEIGHTS)


def test_sigterm_ends_all_ranks(tmp_path):
    root = ring_workspace(tmp_path / "told", 3)
    process = start(root)
    wait_for(lambda: step_of(root) >= 4, process=process)
    others = members(process)
    process.terminate()
    finish(process, ExitCode.INTERRUPTED, seconds=40)
    assert len(others) == 2 and not any(map(alive, others))


def test_a_machine_that_stops_is_given_up_in_time_and_a_smaller_ring_goes_on(alone, tmp_path):
    """A stopped process is a Mac asleep: no end, no word. The others of a rank 0 that sleeps end too."""
    root = ring_workspace(tmp_path / "asleep", 2, hosts_timeout_s=5)
    process = start(root)
    wait_for(lambda: step_of(root) >= 4, process=process)
    waiting = members(process)[0]
    process.send_signal(signal.SIGSTOP)
    assert wait_for(lambda: not alive(waiting)) < 5 + 10
    process.send_signal(signal.SIGCONT)
    finish(process, ExitCode.UNAVAILABLE, seconds=40)
    assert "rank 0 has been silent for" in told(root)
    process = start(root)
    wait_for(lambda: step_of(root) >= 12, process=process)
    stopped = members(process)[0]
    stopped.send_signal(signal.SIGSTOP)
    finish(process, ExitCode.UNAVAILABLE, seconds=40)
    assert "rank 1 (127.0.0.1) has been silent for" in told(root)
    assert not alive(stopped)
    reached = step_of(root)
    params = root / "params.yaml"
    tree = yaml.safe_load(params.read_text())
    tree["train"]["hosts"] = []
    params.write_text(yaml.safe_dump(tree))
    assert f"step={reached}" in finish(start(root))  # where is not what: the checkpoint is this training's
    np.testing.assert_allclose(losses(root), losses(alone), rtol=2e-4)


def test_three_ranks_with_micro_batches_and_a_learned_schedule(tmp_path):
    """8 images on 3 ranks are 3, 3 and 2, two at a time; the schedule is measured by rank 0 and followed by all."""
    ring = ring_workspace(tmp_path / "ring", 3, **LONG)
    one = ring_workspace(tmp_path / "one", 1, **LONG)
    finish(start(ring, MLX_TASKS_MICRO_BATCH="2"))
    finish(start(one))
    np.testing.assert_allclose(losses(ring), losses(one), rtol=5e-3)
    np.testing.assert_allclose(losses(ring)[:10], losses(one)[:10], rtol=1e-4)
    betas = [read_json(r / "work/teacher/scheduler/scheduler_config.json")["trained_betas"] for r in (ring, one)]
    np.testing.assert_allclose(betas[0], betas[1], rtol=2e-2)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssh")
    with Sshd(folder / "server", folder / "locks") as server:
        yield server


def far_workspace(root: Path, folder: Path, **train) -> Path:
    """One process here and one through ssh, whose checkout is that folder."""
    hosts = {"hosts": ["127.0.0.1", "far=127.0.0.1"], "hosts_folder": str(folder), "hosts_python": sys.executable}
    return ring_workspace(root, 2, **{**hosts, **train})


@pytest.fixture(scope="module")
def far_checkout(tmp_path_factory) -> Path:
    return checkout(tmp_path_factory.mktemp("far"))


def test_a_rank_through_ssh_is_as_one_here_and_ends_with_its_connection(two, sshd, far_checkout, tmp_path):
    root = far_workspace(tmp_path / "ssh", far_checkout)
    for who, steps in (("ssh", 4), ("rank 0", 12)):
        process = start(root, PATH=sshd.path)
        wait_for(lambda steps=steps: step_of(root) >= steps, process=process)
        far = sshd.far_members()
        assert len(far) == 1 and far[0].cwd() == str(far_checkout) and not members(process)
        if who == "ssh":
            [ssh] = psutil.Process(process.pid).children()
            ssh.kill()
            finish(process, ExitCode.UNAVAILABLE, seconds=40)
            assert "rank 1 (far) ended by signal 9" in told(root)
        else:
            process.kill()
            process.wait()
        assert wait_for(lambda gone=far[0]: not alive(gone), 20) < 20
    assert "2 ranks: 127.0.0.1, far" in finish(start(root, PATH=sshd.path))
    assert sha256_file(root / WEIGHTS) == sha256_file(two / WEIGHTS)


def test_what_keeps_a_machine_out_is_said_with_its_name(sshd, far_checkout, tmp_path):
    other = checkout(tmp_path / "other")
    with (other / "mlx_tasks/training/loop.py").open("a") as file:
        file.write("# an edit\n")
    refusals = {
        "other": ({"hosts_folder": str(other)}, ExitCode.BAD_INPUT, "rank 1 (far) has another version of this code in"),
        "missing": ({"hosts_folder": str(tmp_path / "nowhere")}, ExitCode.UNAVAILABLE, "nowhere"),
        "lost": ({"hosts": ["127.0.0.1", "lost=127.0.0.1"]}, ExitCode.UNAVAILABLE, "Connection refused"),
    }
    for name, (change, code, words) in refusals.items():
        root = far_workspace(tmp_path / name, far_checkout, **change)
        finish(start(root, PATH=sshd.path), code, seconds=60)
        assert words in told(root) and "rank 1" in told(root)
    with held(sshd.locks / "cpu.lock", "another stage", what="the accelerator"):
        root = far_workspace(tmp_path / "busy", far_checkout, hosts_timeout_s=8)
        finish(start(root, PATH=sshd.path), ExitCode.BUSY, seconds=60)
        assert "rank 1 (far): the accelerator" in told(root) and "(another stage)" in told(root)
    assert wait_for(lambda: not sshd.far_members(), 20) < 20


def test_the_environment_may_name_other_machines():
    train = parse_config({"train": {"hosts": ["mac-a.local", "mac-b.local"]}}).train
    assert machines(train, {}) is train
    assert machines(train, {"MLX_TASKS_HOSTS": "none"}).hosts == ()
    assert machines(train, {"MLX_TASKS_HOSTS": "mac-a.local, mac-c.local"}).hosts == ("mac-a.local", "mac-c.local")
    with pytest.raises(DataError, match="more than once"):
        machines(train, {"MLX_TASKS_HOSTS": "mac-a.local,mac-a.local"})


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"hosts": ["127.0.0.1"]}, "has one machine"),
        ({"hosts": ["", "mac-b.local"]}, "String should match pattern"),
        ({"hosts": ["mac-a.local", "-oProxyCommand=x"]}, "String should match pattern"),
        ({"hosts": ["mac-a.local", "mac-a.local"]}, "more than once"),
        ({"hosts": ["127.0.0.1", "mac-b.local"]}, "no other machine reaches"),
        ({"hosts": ["127.0.0.1"] * 17, "batch_size": 16}, "17 machines for a train.batch_size of 16"),
        ({"hosts_port": 80}, "greater than or equal to 1024"),
        ({"hosts_python": "-c"}, "String should match pattern"),
    ],
)
def test_hosts_that_cannot_be_are_refused(train, words):
    with pytest.raises(DataError, match=words):
        parse_config({"train": train})


def test_this_machine_is_rank_0_wherever_it_stands():
    own = next(iter(own_addresses() - {"127.0.0.1"}), None)
    if own is not None:
        hosts = ordered(["203.0.113.1", f"user@{own}", "mac-c=203.0.113.3"])
        assert hosts == [
            Host(f"user@{own}", own, True),
            Host("203.0.113.1", "203.0.113.1", False),
            Host("mac-c", "203.0.113.3", False),
        ]
        with pytest.raises(DataError, match="more than once"):
            ordered([own, f"user@{own}"])
    with pytest.raises(DataError, match=r"none of train.hosts \(203.0.113.1, 203.0.113.2\) is this machine"):
        ordered(["203.0.113.1", "203.0.113.2"])
    with pytest.raises(UnavailableError, match=r"no-such-mac\.invalid"):
        ordered(["127.0.0.1", "no-such-mac.invalid"])


def test_dvc_looks_at_all_of_train_but_where_it_is_computed(repository):
    seen = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]["train"]["params"]
    keys = {f"train.{name}" for name in Train.model_fields if not name.startswith("hosts")}
    assert {key for key in seen if key.startswith("train")} == keys
