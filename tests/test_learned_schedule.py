"""A schedule that follows the loss: what is minimised stays, its variance falls, killed runs learn the same."""

import diffusers
import mlx.core as mx
import numpy as np
import pytest
from training_world import context, digits, workspace

from mlx_tasks.diffusion.learned_schedule import BINS, FLOOR, edges, learned_schedule, reference_mass
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import sha256_file
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.params import parse_config
from mlx_tasks.stages import train
from mlx_tasks.training import schedule_learning
from mlx_tasks.training.batches import noised_batch

REFERENCE = NoiseSchedule.cosine(1024)
WEIGHTS = "work/teacher/unet/diffusion_pytorch_model.safetensors"


def bump(log_sigma):
    """A loss that lives around log sigma = 0.5 alone."""
    return np.exp(-0.5 * ((log_sigma - 0.5) / 0.4) ** 2)


def moments(loss):
    fine = np.linspace(*np.log(REFERENCE.sigmas[[0, -1]]), 200 * BINS)
    return (loss(fine) ** 2).reshape(BINS, 200).mean(axis=1)


def test_what_is_minimised_stays_and_its_variance_falls():
    learned = learned_schedule(REFERENCE, moments(bump))
    plain = bump(np.log(REFERENCE.sigmas))
    drawn = bump(np.log(learned.schedule.sigmas)) * learned.importance
    assert drawn.mean() == pytest.approx(plain.mean(), rel=0.02)
    assert drawn.var() < 0.25 * plain.var()


def test_the_density_goes_with_the_root_of_the_second_moment_and_no_level_is_forgotten():
    second = np.arange(1.0, BINS + 1)
    learned = learned_schedule(REFERENCE, second)
    logs, old = np.log(learned.schedule.sigmas), reference_mass(REFERENCE)
    share = np.histogram(logs, edges(REFERENCE))[0] / len(logs)
    best = old * np.sqrt(second)
    np.testing.assert_allclose(share, (1 - FLOOR) * best / best.sum() + FLOOR * old, atol=2e-3)
    assert learned.importance.max() <= 1 / FLOOR
    np.testing.assert_allclose(logs[[0, -1]], np.log(REFERENCE.sigmas[[0, -1]]), atol=0.02)
    assert np.all(np.diff(learned.schedule.sigmas) > 0)


def test_equal_moments_give_the_reference_back():
    learned = learned_schedule(REFERENCE, np.ones(BINS))
    np.testing.assert_allclose(learned.importance, 1.0, atol=1e-9)
    middle = slice(64, -64)
    np.testing.assert_allclose(np.log(learned.schedule.sigmas[middle]), np.log(REFERENCE.sigmas[middle]), atol=0.1)


@pytest.mark.parametrize("wrong", [np.zeros(BINS), np.ones(3), np.full(BINS, np.nan), -np.ones(BINS)])
def test_moments_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="finite moments"):
        learned_schedule(REFERENCE, wrong)


def test_a_moment_is_the_mean_square_of_the_weighted_loss():
    """A network that predicts 0 for images of nothing: v = alpha * eps, so the loss is w alpha^2 mean(eps^2)."""
    data = digits()
    data = type(data)(**{**vars(data), "images": np.full_like(data.images, 127.5)})
    found = None
    for step in range(400):
        found = schedule_learning.measure(
            lambda x, t, labels: mx.zeros_like(x), REFERENCE, REFERENCE, data, 10, None, found, 0, step
        )
    middles = 0.5 * (edges(REFERENCE)[1:] + edges(REFERENCE)[:-1])
    alpha = 1.0 / np.sqrt(1.0 + np.exp(2 * middles))
    expected = alpha**4 * (1 + 2 / 64)  # E[mean(eps^2)^2] over 64 pixels
    low = middles < 0
    np.testing.assert_allclose(np.array(found)[low], expected[low], rtol=0.25)


def test_the_loss_follows_the_schedule_it_is_told():
    learned = learned_schedule(REFERENCE, moments(bump))
    batch = noised_batch(digits(), np.arange(8), 1024, mx.random.key(0))
    told = schedule_learning.follow(batch, learned)
    level = np.array(batch["level"])
    np.testing.assert_allclose(np.array(told["importance"]), learned.importance[level], rtol=1e-6)
    np.testing.assert_allclose(np.array(told["alpha"]) ** 2, learned.schedule.alpha_bar[level], rtol=1e-5)


def trained(root, monkeypatch, end_at=None):
    monkeypatch.setattr(train, "EVERY", 3)
    stage = context(root, "train")
    if end_at is not None:
        metrics = stage.tracker.metrics

        def ending(values, step):
            metrics(values, step)
            if step == end_at and "train/loss" in values:
                raise KeyboardInterrupt

        monkeypatch.setattr(stage.tracker, "metrics", ending)
        with pytest.raises(KeyboardInterrupt):
            train.run(stage)
    else:
        train.run(stage)


def test_a_killed_run_learns_the_same_schedule_and_diffusers_reads_it(tmp_path, monkeypatch):
    chosen = {"noise_schedule": "learned"}
    calm, torn = (workspace(tmp_path / name, train=chosen) for name in ("calm", "torn"))
    trained(calm, monkeypatch)
    trained(torn, monkeypatch, end_at=11)
    trained(torn, monkeypatch)
    assert sha256_file(calm / WEIGHTS) == sha256_file(torn / WEIGHTS)
    schedule = read_bundle(calm / "work/teacher").schedule
    assert schedule == read_bundle(torn / "work/teacher").schedule and schedule.trained_betas is not None
    assert not np.allclose(schedule.sigmas, REFERENCE.sigmas, rtol=0.05)
    theirs = diffusers.DPMSolverMultistepScheduler.from_pretrained(calm / "work/teacher", subfolder="scheduler")
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), schedule.alpha_bar, rtol=1e-5)


@pytest.mark.parametrize(("name", "zero"), [("linear", False), ("sigmoid", False), ("scaled_linear", True)])
def test_the_named_schedule_is_the_one_trained_with(tmp_path, name, zero):
    chosen = {"noise_schedule": name, "zero_terminal_snr": zero, "resolutions": [8], "steps": 2}
    root = workspace(tmp_path / "w", train=chosen)
    train.run(context(root, "train"))
    schedule = read_bundle(root / "work/teacher").schedule
    assert schedule == NoiseSchedule(1024, name, rescale_betas_zero_snr=zero)
    assert (schedule.alpha_bar[-1] < 1e-7) == zero


def test_pure_noise_at_the_end_is_for_named_schedules():
    with pytest.raises(DataError, match="zero_terminal_snr is for a named"):
        parse_config({"train": {"noise_schedule": "learned", "zero_terminal_snr": True}})
