"""Distillation's formulas, held to a Gaussian whose denoiser is known in closed form."""

import itertools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from training_world import digits

from mlx_tasks.config_training import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.distillation import StudentOptions, distill_steps, guided_velocity, halving_loss, halving_steps
from mlx_tasks.distillation.gate import Judge, judge_student
from mlx_tasks.distillation.output import output_loss
from mlx_tasks.distillation.progressive import Level, _fine_grid, ddim_step, halving_target
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import keyed_noise, sample, uniform_grid
from mlx_tasks.training.batches import draw_batch
from mlx_tasks.training.learner import Learner

SCHEDULE = NoiseSchedule.cosine(64)
MEAN, SPREAD = 0.3, 0.5


class Gaussian(nn.Module):
    """The exact v for data ~ N(MEAN, SPREAD^2) in every pixel; guidance aside, labels are not looked at.

    E[x0 | x] = MEAN + alpha SPREAD^2 (x - alpha MEAN) / (alpha^2 SPREAD^2 + std^2).
    """

    def __init__(self):
        super().__init__()
        self.gain = mx.array(1.0)

    def __call__(self, x, t, labels=None):
        alpha, std = (f(t.astype(mx.int32)).reshape(-1, 1, 1, 1) for f in (SCHEDULE.alpha, SCHEDULE.std))
        x0 = MEAN + alpha * SPREAD**2 * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + std**2)
        return self.gain * (alpha * x - x0) / std


def level(t):
    if t is None:
        return Level(mx.zeros(1), mx.ones((1, 1, 1, 1)), mx.zeros((1, 1, 1, 1)))
    times = mx.array([t])
    return Level(times, SCHEDULE.alpha(times).reshape(1, 1, 1, 1), SCHEDULE.std(times).reshape(1, 1, 1, 1))


def exact_x0(x, at):
    return at.alpha * x - at.std * Gaussian()(x, at.t)


@pytest.mark.parametrize("t", [(63, 47, 31), (31, 23, 15), (15, 7, None)])
def test_one_ddim_step_with_the_target_lands_where_the_teachers_two_land(t):
    x = mx.random.normal((1, 4, 4, 1), key=mx.random.key(0))
    start, middle, end = (level(value) for value in t)
    x_middle = ddim_step(x, exact_x0(x, start), start, middle)
    x_end = ddim_step(x_middle, exact_x0(x_middle, middle), middle, end)
    target = halving_target(exact_x0, x, start, middle, end)
    np.testing.assert_allclose(np.array(ddim_step(x, target, start, end)), np.array(x_end), atol=2e-6)


@pytest.mark.parametrize("t", [(63, 47, 31), (31, 23, 15)])
def test_the_target_on_a_gaussian_is_its_closed_form(t):
    """DDIM on a Gaussian is affine: with c the centred x0 coefficient of a level, x - alpha m shrinks by known factors.

    Worked in numpy float64: two steps, then the x0 that solves  x'' = alpha'' x0 + std'' (x - alpha x0) / std.
    """
    alphas = [np.sqrt(SCHEDULE.alpha_bar[i]) for i in t]
    stds = [np.sqrt(1 - SCHEDULE.alpha_bar[i]) for i in t]

    def factor(i, j):
        """Of x - alpha m, from level i to j:  (alpha_j alpha_i s^2 + std_j std_i) / (alpha_i^2 s^2 + std_i^2)."""
        return (alphas[j] * alphas[i] * SPREAD**2 + stds[j] * stds[i]) / (alphas[i] ** 2 * SPREAD**2 + stds[i] ** 2)

    x = np.linspace(-2, 2, 16).reshape(1, 4, 4, 1)
    x_end = alphas[2] * MEAN + factor(0, 1) * factor(1, 2) * (x - alphas[0] * MEAN)
    ratio = stds[2] / stds[0]
    expected = (x_end - ratio * x) / (alphas[2] - ratio * alphas[0])
    got = halving_target(exact_x0, mx.array(x.astype(np.float32)), *(level(value) for value in t))
    np.testing.assert_allclose(np.array(got), expected, atol=1e-5)


def test_a_student_of_n_steps_that_meets_every_target_draws_the_teachers_images_of_2n():
    """The targets, used as a denoiser, through the real sampler."""
    grid, fine = uniform_grid(SCHEDULE, 4), uniform_grid(SCHEDULE, 8)
    noise = mx.random.normal((5, 4, 4, 1), key=mx.random.key(3))

    class Exact:
        evaluations = 1

        def __call__(self, x, sigma):
            t = round(float(SCHEDULE.t_from_sigma(sigma)))
            return exact_x0(x / (1 + sigma**2) ** 0.5, level(t))

    class Target:
        evaluations = 1

        def __call__(self, x, sigma):
            index = grid.timesteps.index(round(float(SCHEDULE.t_from_sigma(sigma))))
            three = [*fine.timesteps, None][2 * index : 2 * index + 3]
            return halving_target(exact_x0, x / (1 + sigma**2) ** 0.5, *(level(t) for t in three))

    teacher, student = sample(Exact(), noise, fine).images, sample(Target(), noise, grid).images
    np.testing.assert_allclose(np.array(student), np.array(teacher), atol=3e-4)


def test_the_halving_loss_is_its_formula_in_numpy():
    data, steps = digits(), 4
    batch = draw_batch(data, 10, steps, 0, "test", 0)
    student = Gaussian()
    student.gain = mx.array(0.7)
    fine = uniform_grid(SCHEDULE, 2 * steps).timesteps
    total = 0.0
    for i in range(10):
        index = int(batch["level"][i].item())
        start, middle, end = (level(t) for t in [*fine, None][2 * index : 2 * index + 3])
        x = start.alpha * batch["x0"][i : i + 1] + start.std * batch["eps"][i : i + 1]
        target = np.array(halving_target(exact_x0, x, start, middle, end))
        guess = np.array(start.alpha * x - start.std * student(x, start.t))
        snr = (start.alpha / start.std).item() ** 2
        total += max(snr, 1.0) * ((target - guess) ** 2).mean()
    got = halving_loss(guided_velocity(Gaussian()), SCHEDULE, steps)(student, batch).item()
    assert got == pytest.approx(total / 10, rel=1e-3)


@pytest.mark.parametrize(("total", "counts"), [(1024, (16, 8, 4, 2, 1)), (1000, (16, 8, 12, 6, 3)), (100, (24, 12, 6))])
def test_the_fine_grid_holds_the_students_and_falls(total, counts):
    """With a power of two it is the uniform grid of twice the steps; elsewhere at most one timestep off it."""
    schedule = NoiseSchedule.cosine(total)
    for steps in counts:
        fine, twice = _fine_grid(schedule, steps), uniform_grid(schedule, 2 * steps).timesteps
        assert tuple(fine[::2]) == uniform_grid(schedule, steps).timesteps
        assert all(b < a for a, b in itertools.pairwise(fine))
        off = max(abs(a - b) for a, b in zip(fine, twice, strict=True))
        assert off == 0 if total == 1024 else off <= 1


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match="n=66"):
        halving_loss(guided_velocity(Gaussian()), SCHEDULE, 33)


def test_guidance_is_two_branches_in_one_call():
    calls = []

    def model(x, t, labels):
        calls.append(len(x))
        return labels.reshape(-1, 1, 1, 1) * mx.ones_like(x)

    velocity = guided_velocity(model, 3.0, null_label=10)
    x, labels = mx.zeros((2, 4, 4, 1)), mx.array([1, 4])
    assert np.array(velocity(x, mx.zeros(2), labels))[:, 0, 0, 0].tolist() == [10 + 3 * (1 - 10), 10 + 3 * (4 - 10)]
    assert calls == [4]
    with pytest.raises(ValueError, match="null_label"):
        guided_velocity(model, 3.0)


def test_output_distillation_of_the_teacher_itself_has_no_loss_and_no_gradient_to_it():
    teacher, student = Gaussian(), Gaussian()
    batch = draw_batch(digits(), 8, 64, 0, "test", 0)
    loss = output_loss(guided_velocity(teacher), SCHEDULE)
    assert loss(student, batch).item() < 1e-10
    student.gain = mx.array(0.9)
    learner = Learner(student, loss, weight_decay=0.0)
    for _ in range(60):
        learner.step(batch, 1e-2, 0.0)
    assert student.gain.item() == pytest.approx(1.0, abs=0.02) and teacher.gain.item() == 1.0


def small_network(width=8, key=0):
    model = Model(block_out_channels=(width, width), attention_levels=(False, False), norm_num_groups=4)
    return UNet2DModel(UNet2DConfig.build(model, 8, 1, 10, "relu"), key=mx.random.key(key))


def test_a_small_student_learns_another_networks_velocity():
    teacher, student = small_network(key=1), small_network(key=2)
    options = StudentOptions(updates=60, batch_size=16, learning_rate=5e-3, seed=0, warmup_updates=5)
    records = list(distill_steps(student, guided_velocity(teacher, 1.5, 10), digits(), SCHEDULE, options))
    assert len(records) == 60 and np.mean([r.loss for r in records[-5:]]) < 0.5 * np.mean([r.loss for r in records[:5]])
    assert records[-1].learning_rate == pytest.approx(5e-3 / 60)


def test_halving_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path):
    options = StudentOptions(updates=9, batch_size=8, learning_rate=1e-3, seed=0, checkpoint_every=3)
    teacher = guided_velocity(small_network(key=1))

    def steps(student, folder):
        return halving_steps(student, teacher, digits(), SCHEDULE, 4, options, tmp_path / folder, "same")

    calm, torn = small_network(key=1), small_network(key=1)
    list(steps(calm, "calm"))
    for record in steps(torn, "torn"):
        if record.step == 5:
            break
    resumed = small_network(key=7)
    assert [record.step for record in steps(resumed, "torn")] == [4, 5, 6, 7, 8, 9]
    from mlx.utils import tree_flatten

    for (name, a), (_, b) in zip(tree_flatten(calm.parameters()), tree_flatten(resumed.parameters()), strict=True):
        assert np.array(a).tobytes() == np.array(b).tobytes(), name


def test_the_gate_knows_its_limit():
    assert judge_student(0.15, 0.10, 0.5).accepted and judge_student(0.05, 0.10, 0.0).accepted
    refused = judge_student(0.1501, 0.10, 0.5)
    assert not refused.accepted and "0.1501" in refused.reason and "0.15" in refused.reason
    assert not judge_student(float("nan"), 0.10, 0.5).accepted


def test_the_judge_ranks_real_images_over_blurred_over_noise():
    data = digits()
    noise = keyed_noise(0, 128, (8, 8, 1))
    judge = Judge(data.images[:128], noise, mx.array(data.labels[:128]), seed=0)
    held_out = data.images[128:].astype(np.float32) / 127.5 - 1
    blurred = (held_out + np.roll(held_out, 1, 1) + np.roll(held_out, 1, 2) + np.roll(held_out, (1, 1), (1, 2))) / 4
    real, blur, noised = (
        judge.frechet_distance(lambda n, labels, i=i: mx.array(i)) for i in (held_out, blurred, np.array(noise))
    )
    assert real.value < 0.5 * blur.value and blur.value < noised.value
    assert real.low <= real.value <= real.high
    with pytest.raises(ValueError, match="equal"):
        Judge(data.images[:5], noise, None, seed=0)
