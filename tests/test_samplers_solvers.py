"""Solvers and the driver, against flows known in closed form and against diffusers' schedulers."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.errors import ExitCode
from mlx_tasks.samplers import (
    SOLVERS,
    SamplerDivergedError,
    grid_from_timesteps,
    karras_grid,
    network_denoiser,
    sample,
    uniform_grid,
)

SCHEDULE = NoiseSchedule.cosine()
MEAN, SPREAD = 0.3, 0.5
NOISE = mx.random.normal((4, 3, 3, 2), key=mx.random.key(0))


def gaussian(x, sigma):
    """The exact denoiser of data drawn from N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def gaussian_flow(x, sigma, sigma_end):
    """Where the ODE carries x from sigma to sigma_end: the distance to the mean scales with the total spread."""
    return MEAN + (x - MEAN) * np.sqrt((SPREAD**2 + sigma_end**2) / (SPREAD**2 + sigma**2))


def two_modes(xp, x, sigma, spread=0.3):
    """The exact denoiser of pixels drawn near -1 or +1: not linear in x."""
    variance = spread**2 + sigma**2
    return (spread**2 * x + sigma**2 * xp.tanh(x / variance)) / variance


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_converges_to_the_exact_flow_at_its_order(name):
    counts, errors = (16, 32, 64, 128), []
    for n in counts:
        sigmas = np.geomspace(10.0, 0.1, n + 1)
        got = np.array(sample(gaussian, NOISE, sigmas, name).images)
        exact = gaussian_flow(np.array(NOISE) * np.sqrt(101.0), 10.0, 0.1)
        errors.append(np.abs(got - exact).mean())
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(SOLVERS[name].order, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_end_at_zero_noise_is_the_exact_sample(name):
    grid = karras_grid(SCHEDULE, 200, t_first=980)
    exact = gaussian_flow(np.array(NOISE) * np.sqrt(1 + grid.sigmas[0] ** 2), grid.sigmas[0], 0.0)
    np.testing.assert_allclose(np.array(sample(gaussian, NOISE, grid, name).images), exact, atol=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_driver_counts_what_the_solver_documents(name):
    class Guided:
        evaluations = 2

        def __call__(self, x, sigma):
            return gaussian(x, sigma)

    for n in (1, 2, 7):
        assert sample(gaussian, NOISE, uniform_grid(SCHEDULE, n), name).nfe == SOLVERS[name].calls(n)
        assert sample(Guided(), NOISE, uniform_grid(SCHEDULE, n), name).nfe == 2 * SOLVERS[name].calls(n)
    for calls in (1, 2, 5, 8):
        steps = SOLVERS[name].steps_within(calls)
        assert SOLVERS[name].calls(steps) <= calls < SOLVERS[name].calls(steps + 1)
    with pytest.raises(ValueError, match="got 0"):
        SOLVERS[name].steps_within(0)


def test_documented_costs():
    assert {name: solver.calls(8) for name, solver in SOLVERS.items()} == {"ddim": 8, "heun": 15, "dpmpp_2m": 8}


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_gives_the_denoised_start(name):
    grid = uniform_grid(SCHEDULE, 1)
    start = NOISE * np.sqrt(1 + grid.sigmas[0] ** 2)
    got = sample(gaussian, NOISE, grid, name).images
    assert mx.allclose(got, gaussian(start, grid.sigmas[0]), atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_of_two_is_two_batches_of_one_and_runs_repeat(name):
    grid = karras_grid(SCHEDULE, 6)
    run = lambda noise: sample(lambda x, s: two_modes(mx, x, s), noise, grid, name, key=mx.random.key(1)).images  # noqa: E731
    both = run(NOISE[:2])
    assert mx.array_equal(both, mx.concatenate([run(NOISE[:1]), run(NOISE[1:2])]))
    assert mx.array_equal(both, run(NOISE[:2]))


def _v_network(x, t, class_labels=None):
    """The v prediction of `two_modes`, as a variance-preserving network would give it."""
    sigma = mx.array(SCHEDULE.sigma_from_t(np.array(t)).astype(np.float32)).reshape(-1, 1, 1, 1)
    alpha = 1 / mx.sqrt(1 + sigma**2)
    return (alpha * x - two_modes(mx, x / alpha, sigma)) / (sigma * alpha)


def _diffusers_run(scheduler, noise):
    """Final image and the x0 estimates of a diffusers scheduler on the same model and noise."""
    import torch

    x, estimates = torch.tensor(np.array(noise)), []
    for t in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[t].double()
        alpha, std = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x0 = two_modes(torch, x / alpha, std / alpha)
        estimates.append(x0.numpy())
        x = scheduler.step(((alpha * x - x0) / std).float(), t, x).prev_sample
    return x.numpy(), estimates


def _assert_same_run(scheduler, grid, solver):
    estimates = []
    denoise = network_denoiser(_v_network, SCHEDULE)
    ours = sample(denoise, NOISE, grid, solver, callback=lambda i, sigma, x0: estimates.append(np.array(x0)))
    theirs, their_estimates = _diffusers_run(scheduler, NOISE)
    np.testing.assert_allclose(np.array(ours.images), theirs, atol=1e-4)
    for mine, other in zip(estimates, their_estimates, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize("n", [1, 4, 10, 50])
def test_ddim_is_diffusers_ddim(n):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(SCHEDULE.to_config())
    scheduler.set_timesteps(n)
    _assert_same_run(scheduler, uniform_grid(SCHEDULE, n), "ddim")


@pytest.mark.parametrize("timesteps", [(990, 700, 300, 40), tuple(range(980, 0, -49)), (999, 500)])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_custom_timesteps_are_diffusers_dpm_solver(timesteps, solver, order):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", solver_order=order
    )
    scheduler.set_timesteps(timesteps=list(timesteps))
    _assert_same_run(scheduler, grid_from_timesteps(SCHEDULE, timesteps), solver)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_each_prediction_type_gives_the_same_estimate(prediction_type):
    def network(x, t, labels):
        sigma = float(SCHEDULE.sigma_from_t(float(t[0])))
        alpha = 1 / np.sqrt(1 + sigma**2)
        x0 = gaussian(x / alpha, sigma)
        eps = (x / alpha - x0) / sigma
        return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * alpha * x0}[prediction_type]

    denoise = network_denoiser(network, NoiseSchedule(prediction_type=prediction_type))
    for t in (0, 400, 900):
        sigma = float(SCHEDULE.sigmas[t])
        x = NOISE * (1 + sigma)
        np.testing.assert_allclose(np.array(denoise(x, sigma)), np.array(gaussian(x, sigma)), atol=2e-5)


def test_the_network_sees_unit_variance_its_own_timestep_and_the_labels():
    seen = {}

    def network(x, t, labels):
        seen.update(x=x, t=t, labels=labels)
        return x

    sigma = float(SCHEDULE.sigmas[600])
    network_denoiser(network, SCHEDULE, mx.array([3, 1, 4, 1]))(NOISE * np.sqrt(1 + sigma**2), sigma)
    assert mx.allclose(seen["x"], NOISE, atol=1e-6)
    assert seen["t"].tolist() == pytest.approx([600.0] * 4, abs=1e-4)
    assert seen["labels"].tolist() == [3, 1, 4, 1]


class _Labelled:
    """A network whose output depends on the label; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t, labels):
        self.calls += 1
        return x * 0.5 + mx.sin(labels.astype(mx.float32)).reshape(-1, 1, 1, 1)


def test_guidance_is_the_two_branch_formula_in_one_call():
    labels, sigma, scale = mx.array([0, 1, 2, 3]), 2.0, 1.8
    network = _Labelled()
    guided = network_denoiser(network, SCHEDULE, labels, scale, null_label=10)
    got = guided(NOISE, sigma)
    assert guided.evaluations == 2 and network.calls == 1
    conditional = network_denoiser(network, SCHEDULE, labels)
    unconditional = network_denoiser(network, SCHEDULE, labels, 0.0, null_label=10)
    assert conditional.evaluations == unconditional.evaluations == 1
    empty = unconditional(NOISE, sigma)
    np.testing.assert_allclose(np.array(got), np.array(empty + scale * (conditional(NOISE, sigma) - empty)), atol=1e-5)
    assert mx.allclose(empty, network_denoiser(network, SCHEDULE, mx.full((4,), 10))(NOISE, sigma))
    with pytest.raises(ValueError, match=r"guidance_scale 1\.8"):
        network_denoiser(network, SCHEDULE, labels, scale)
    with pytest.raises(ValueError, match=r"guidance_scale 2\.0"):
        network_denoiser(network, SCHEDULE, None, 2.0, null_label=10)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_breaks_is_named_by_step_and_sigma(name, value):
    grid = karras_grid(SCHEDULE, 6)

    def broken(x, sigma):
        return mx.where(mx.arange(x.size).reshape(x.shape) == 5, value, x) if sigma == grid.sigmas[3] else x * 0.9

    broken_at = 2 if name == "heun" else 3  # Heun looks at the next level first
    with pytest.raises(SamplerDivergedError, match=f"step {broken_at} from sigma") as raised:
        sample(broken, NOISE, grid, name)
    assert raised.value.step == broken_at and raised.value.sigma == grid.sigmas[broken_at]
    assert raised.value.exit_code == ExitCode.DIVERGED


@pytest.mark.parametrize(
    ("sigmas", "said"),
    [
        ([], r"\[\]"),
        ([1.0], r"\[1.0\]"),
        ([1.0, 1.0], r"\[1.0, 1.0\]"),
        ([1.0, 2.0, 0.0], "2.0"),
        ([1.0, -0.5], "-0.5"),
        ([float("inf"), 1.0], "inf"),
        ([1.0, float("nan")], "nan"),
        ([1.0, 0.0, 0.0], r"0.0, 0.0"),
    ],
)
def test_a_bad_grid_is_refused_with_its_value(sigmas, said):
    with pytest.raises(ValueError, match=said):
        sample(gaussian, NOISE, sigmas)


def test_an_unknown_solver_is_refused_with_the_names():
    with pytest.raises(ValueError, match="ddim, heun, dpmpp_2m"):
        sample(gaussian, NOISE, [1.0, 0.0], "euler")


def test_images_are_not_clipped():
    assert float(mx.max(mx.abs(sample(lambda x, s: x * 0 + 7.0, NOISE, [3.0, 1.0, 0.0]).images))) == 7.0
