"""The loop: stopped and gone on from, it is the same training; a broken number stops it before it does harm."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_tasks.errors import DivergedError, OutOfMemoryError
from mlx_tasks.training.checkpoint import load_checkpoint
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.learner import Learner
from mlx_tasks.training.loop import Plan, train_steps


def learner(loss=lambda model, b: mx.mean((model(b["x"]) - b["y"]) ** 2), seed=0):
    layer = nn.Linear(3, 2)
    layer.weight, layer.bias = mx.random.normal((2, 3), key=mx.random.key(seed)), mx.zeros((2,))
    return Learner(layer, loss)


def batch_at(step):
    x = mx.random.normal((8, 3), key=named_key("loop", step))
    return {"x": x, "y": x[:, :2]}


def plan(steps=20, batch=batch_at, **changes):
    values = dict(learning_rate_at=lambda s: 0.02 / (1 + s), ema_decay_at=lambda s: s / (s + 3), checkpoint_every=4)
    return Plan(steps, batch, **(values | {"identity": "this"} | changes))


def everything(made):
    return {name: np.array(array).tobytes() for name, array in made.arrays().items()}


@pytest.mark.parametrize("stop", [5, 8, 9, 11, 19])
def test_stopped_anywhere_and_gone_on_it_equals_never_stopped(tmp_path, stop):
    calm = learner()
    records = list(train_steps(calm, plan(), tmp_path / "calm"))
    for record in train_steps(learner(), plan(), tmp_path / "torn"):
        if record.step == stop:
            break
    resumed = learner(seed=9)
    after = list(train_steps(resumed, plan(), tmp_path / "torn"))
    first = (stop - 1) // 4 * 4
    told = [(r.step, r.loss, r.grad_norm, r.learning_rate) for r in after]
    assert told == [(r.step, r.loss, r.grad_norm, r.learning_rate) for r in records[first:]]
    assert everything(resumed) == everything(calm)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = learner()
    list(train_steps(first, plan(), tmp_path))
    second = learner(seed=4)
    assert list(train_steps(second, plan(), tmp_path)) == []
    assert everything(second) == everything(first)


def test_checkpoints_of_other_params_are_dropped(tmp_path):
    list(train_steps(learner(), plan(identity="other"), tmp_path))
    records = list(train_steps(learner(), plan(), tmp_path))
    assert records[0].step == 1 and load_checkpoint(tmp_path).state["identity"] == "this"


def test_notes_survive_with_the_steps_they_tell_of(tmp_path):
    notes = {"rows": []}
    for record in train_steps(learner(), plan(), tmp_path, notes):
        notes["rows"].append(record.step)
        if record.step == 11:
            break
    kept = {"rows": ["stale"]}
    for record in train_steps(learner(), plan(), tmp_path, kept):
        kept["rows"].append(record.step)
    assert kept["rows"] == list(range(1, 21))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_batch_stops_with_the_step_and_the_last_loss_and_leaves_the_checkpoint(tmp_path, value):
    def broken(step):
        batch = batch_at(step)
        return batch | {"y": batch["y"] + value} if step == 9 else batch

    seen = []
    with pytest.raises(DivergedError) as caught:
        for record in train_steps(learner(), plan(batch=broken), tmp_path):
            seen.append(record)
    assert len(seen) == 9 and caught.value.step == 10 and caught.value.last_finite_loss == seen[-1].loss
    assert str(tmp_path) in str(caught.value) and f"{seen[-1].loss:.6g}" in str(caught.value)
    found = load_checkpoint(tmp_path)
    assert found.step == 8 and all(np.isfinite(np.array(a)).all() for a in found.arrays.values())


def test_a_gradient_that_breaks_while_the_loss_is_finite_is_seen_too(tmp_path):
    """sqrt at 0 has the value 0 and no finite slope."""
    made = learner(lambda model, b: mx.mean(mx.sqrt(mx.maximum(model(b["x"]) * 0, 0))))
    with pytest.raises(DivergedError) as caught:
        list(train_steps(made, plan(checkpoint_every=1), tmp_path))
    assert caught.value.step == 1 and caught.value.last_finite_loss is None
    assert load_checkpoint(tmp_path) is None


def test_running_out_of_memory_has_its_own_error():
    """MLX 0.32.4 dies of SIGSEGV when malloc fails on a CPU, so Metal's words are said for it."""

    def huge(step):
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)")

    with pytest.raises(OutOfMemoryError, match="MLX_TASKS_MICRO_BATCH=64"):
        list(train_steps(learner(), plan(batch=huge)))


def test_records_hold_the_clocks_speed_and_the_plans_rate():
    ticks = iter(range(1000))
    records = list(train_steps(learner(), plan(3), clock=lambda: next(ticks) * 0.5))
    assert [r.images_per_second for r in records] == [16.0] * 3 and [r.seconds for r in records] == [0.5] * 3
    assert [r.learning_rate for r in records] == pytest.approx([0.02, 0.01, 0.02 / 3])
    assert all(0 < r.peak_memory_mb < 10 for r in records)
