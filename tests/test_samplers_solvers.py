"""Solvers and the driver, against flows known in closed form and against diffusers' schedulers."""

from inspect import signature

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.errors import ExitCode
from mlx_tasks.samplers import (
    SOLVERS,
    SamplerDivergedError,
    find_solver,
    grid_from_timesteps,
    karras_grid,
    network_denoiser,
    sample,
    uniform_grid,
)
from mlx_tasks.samplers.dpm_singlestep import group_orders

SCHEDULE = NoiseSchedule.cosine()
MEAN, SPREAD = 0.3, 0.5
NOISE = mx.random.normal((4, 3, 3, 2), key=mx.random.key(0))
KEY = mx.random.key(1)
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver.stochastic]


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


def _levels(n, order):
    """n even steps in log sigma from 3 to 0.3; the first is cut into steps that double, so that a multistep solver's
    start, which is of first order whatever comes later, does not hide its order."""
    whole = np.log(10.0) / n
    size, cut = whole * (whole / 2) ** order, []
    while sum(cut) + size < whole:
        cut.append(size)
        size = min(2 * size, whole)
    steps = [*cut, whole - sum(cut), *[whole] * (n - 1)]
    return np.exp(np.log(3.0) - np.cumsum([0.0, *steps]))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_solver_converges_to_the_exact_flow_at_its_order(name):
    grouped = name.endswith("s")  # single-step ones start anew with every group, so whole groups show their order
    whole = "lower_order_final" in signature(SOLVERS[name].step).parameters
    counts, errors = (12, 24, 48) if grouped else (16, 32, 64), []
    for n in counts:
        sigmas = np.geomspace(3.0, 0.3, n + 1) if grouped else _levels(n, SOLVERS[name].order)
        options = {"lower_order_final": False} if whole else {}
        got = np.array(sample(gaussian, NOISE, sigmas, name, options=options).images)
        exact = gaussian_flow(np.array(NOISE) * np.sqrt(10.0), 3.0, 0.3)
        errors.append(np.abs(got - exact).mean())
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    floor = 1e-6  # what float32 leaves
    if errors[-1] > floor:
        assert SOLVERS[name].order - 0.2 <= order <= SOLVERS[name].order + 1.2  # a corrector or luck may gain one
    else:
        assert errors[0] / errors[1] > 2 ** (SOLVERS[name].order - 0.2)


def test_the_published_third_order_multistep_is_of_second_order_and_doubling_its_bend_mends_it():
    exact = gaussian_flow(np.array(NOISE) * np.sqrt(10.0), 3.0, 0.3)

    def gain(predict, weight, n):
        """log2 of how much n to 2 n steps gain."""
        options = {"lower_order_final": False, "predict": predict, "bend_weight": weight}
        runs = [sample(gaussian, NOISE, _levels(m, 3), "dpmpp_3m", options=options).images for m in (n, 2 * n)]
        coarse, fine = (np.abs(np.array(run) - exact).mean() for run in runs)
        return np.log2(coarse / fine)

    assert gain("eps", 1.0, 24) == pytest.approx(2.0, abs=0.15)
    assert gain("eps", 2.0, 8) > 2.8  # at 24 float32 has no digits left
    assert gain("x0", 2.0, 24) == pytest.approx(3.0, abs=0.15)


def consistency_function(x, sigma):
    """Where the ODE carries x from sigma to no noise: what a consistency model learns, here exactly."""
    return MEAN + (x - MEAN) * SPREAD / mx.sqrt(SPREAD**2 + sigma**2)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_sampler_that_draws_noise_ends_at_the_data_distribution(name):
    start = mx.random.normal((20_000, 1, 1, 1), key=mx.random.key(3))
    sigmas = [*np.geomspace(20.0, 0.01, 256 if name in {"ddpm", "dpmpp_sde"} else 64), 0.0]  # those are of first order
    network = consistency_function if name == "consistency" else gaussian  # a denoiser's jumps would lose spread
    drawn = np.array(sample(network, start, sigmas, name, key=KEY).images)
    assert drawn.mean() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std() == pytest.approx(SPREAD, rel=0.04)
    assert abs(np.corrcoef(drawn.ravel(), np.array(start).ravel())[0, 1]) < (0.2 if name == "edm_stochastic" else 0.05)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_comes_from_the_key_alone_and_an_images_from_its_own(name):
    keys = mx.random.split(mx.random.key(7), 4)
    sigmas = [20.0, 5.0, 1.0, 0.2, 0.0]
    whole = sample(gaussian, NOISE, sigmas, name, key=keys).images
    assert mx.array_equal(whole[2:3], sample(gaussian, NOISE[2:3], sigmas, name, key=keys[2:3]).images)
    assert not mx.allclose(whole, sample(gaussian, NOISE, sigmas, name, key=KEY).images)
    with pytest.raises(ValueError, match="needs a key"):
        sample(gaussian, NOISE, sigmas, name)


def test_eta_goes_from_ddim_to_ddpm():
    sigmas = [20.0, 5.0, 1.0, 0.2, 0.0]
    runs = {eta: sample(gaussian, NOISE, sigmas, "ddim", key=KEY, options={"eta": eta}).images for eta in (0.0, 0.5, 1)}
    assert mx.array_equal(runs[0.0], sample(gaussian, NOISE, sigmas, "ddim").images)
    assert mx.array_equal(runs[1], sample(gaussian, NOISE, sigmas, "ddpm", key=KEY).images)
    assert not mx.allclose(runs[0.5], runs[0.0]) and not mx.allclose(runs[0.5], runs[1])


@pytest.mark.parametrize(
    ("n", "order", "to_zero", "expected"),
    [
        (6, 3, True, (1, 2, 3, 1, 2, 1)),
        (7, 3, True, (1, 2, 3, 1, 2, 3, 1)),
        (8, 3, True, (1, 2, 3, 1, 2, 3, 1, 1)),
        (6, 3, False, (1, 2, 3, 1, 2, 3)),
        (5, 2, True, (1, 2, 1, 2, 1)),
        (1, 3, True, (1,)),
    ],
)
def test_single_step_groups(n, order, to_zero, expected):
    assert group_orders(n, order, to_zero) == expected


def test_other_names_and_unknown_options():
    assert find_solver("euler") is SOLVERS["ddim"] and find_solver("lcm") is SOLVERS["consistency"]
    with pytest.raises(ValueError, match="heun has no option 'eta'; it has: none"):
        find_solver("heun", eta=0.5)
    with pytest.raises(ValueError, match="unipc_2 has no option 'eta'; it has: order, variant"):
        find_solver("unipc_2", eta=0.5)


@pytest.mark.parametrize("name", DETERMINISTIC)
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
        assert sample(gaussian, NOISE, uniform_grid(SCHEDULE, n), name, key=KEY).nfe == SOLVERS[name].calls(n)
        assert sample(Guided(), NOISE, uniform_grid(SCHEDULE, n), name, key=KEY).nfe == 2 * SOLVERS[name].calls(n)
    for calls in (1, 2, 5, 8):
        steps = SOLVERS[name].steps_within(calls)
        assert SOLVERS[name].calls(steps) <= calls < SOLVERS[name].calls(steps + 1)
    with pytest.raises(ValueError, match="got 0"):
        SOLVERS[name].steps_within(0)


def test_documented_costs():
    twice = {"heun", "flow_heun", "edm_stochastic"}
    costs = {name: 15 if name in twice else 8 for name in SOLVERS} | {"pndm": 9}
    assert {name: solver.calls(8) for name, solver in SOLVERS.items()} == costs


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_gives_the_denoised_start(name):
    grid = uniform_grid(SCHEDULE, 1)
    start = NOISE * np.sqrt(1 + grid.sigmas[0] ** 2)
    got = sample(gaussian, NOISE, grid, name, key=KEY).images
    assert mx.allclose(got, gaussian(start, grid.sigmas[0]), atol=1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
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


def test_a_callback_can_end_the_run_with_its_estimate():
    seen = []

    def callback(index, sigma, estimate):
        seen.append(np.array(estimate))
        return index == 2

    denoise, grid = network_denoiser(_v_network, SCHEDULE), uniform_grid(SCHEDULE, 8)
    drawn = sample(denoise, NOISE, grid, "dpmpp_2m", callback=callback)
    assert drawn.nfe == 3 == len(seen) and np.array_equal(np.array(drawn.images), seen[-1])


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

    broken_at = 2 if "heun" in name or name == "edm_stochastic" else 3  # Heun looks at the next level first
    with pytest.raises(SamplerDivergedError, match=f"step {broken_at} from sigma") as raised:
        sample(broken, NOISE, grid, name, key=KEY, options={"churn": 0.0} if name == "edm_stochastic" else None)
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
    with pytest.raises(ValueError, match="ddim, heun, flow_heun"):
        sample(gaussian, NOISE, [1.0, 0.0], "rk45")


def test_images_are_not_clipped():
    assert float(mx.max(mx.abs(sample(lambda x, s: x * 0 + 7.0, NOISE, [3.0, 1.0, 0.0]).images))) == 7.0
