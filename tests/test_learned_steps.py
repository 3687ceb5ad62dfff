"""Learned steps: the solver that takes them, gradients through it, the shortest path, CMA-ES, and which one is kept."""

import itertools
import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from gaussian_problem import SCHEDULE, VARIANCES, GaussianDenoiser, gaussian_problem

from mlx_tasks.errors import DataError
from mlx_tasks.learned_steps import dynamic_programming, unrolled
from mlx_tasks.learned_steps.evolution import evolve
from mlx_tasks.learned_steps.gauss_newton import fit
from mlx_tasks.learned_steps.gradient import descend, rounded
from mlx_tasks.learned_steps.kept_run import KeptRun
from mlx_tasks.learned_steps.methods import Effort, find_steps, tuned_grids
from mlx_tasks.rl.problem import Meter, reference_grid
from mlx_tasks.samplers import LearnedSteps, SamplerDivergedError, grid_from_timesteps, sample
from mlx_tasks.samplers.grids import log_snr_grid
from mlx_tasks.samplers.learned import HISTORY

ENDS = (float(SCHEDULE.sigmas[0]), float(SCHEDULE.sigmas[-1]))
NOISE = mx.random.normal((3, 4, 4, 1), key=mx.random.key(0))
SIGMAS = [40.0, 7.0, 1.5, 0.4, 0.1, 0.0]
STEPS = LearnedSteps((9.0, 2.0, 0.5, 0.0), (8.0, 2.5, 0.4), ((), (0.1,), (0.2, -0.05)))


def test_steps_that_nobody_learned_are_those_of_dpm_solver():
    plain = sample(GaussianDenoiser(), NOISE, SIGMAS, "dpmpp_2m").images
    assert mx.allclose(sample(GaussianDenoiser(), NOISE, SIGMAS, "learned").images, plain, atol=1e-6)
    images = unrolled.run(GaussianDenoiser(), NOISE, unrolled.from_sigmas(SIGMAS), ENDS)
    assert mx.allclose(images, plain, atol=1e-5)
    moved = {**unrolled.from_sigmas(SIGMAS), "weights": mx.ones((5, HISTORY - 1)), "told": mx.ones((5,))}
    assert mx.allclose(
        unrolled.run(GaussianDenoiser(), NOISE, unrolled.with_2m_weights(moved, ENDS), ENDS), plain, atol=1e-5
    )


def test_a_step_is_its_formula_and_the_network_is_told_what_was_learned():
    asked = []

    def denoise(x, sigma):
        asked.append(sigma)
        return 0.3 * x + 0.1 * sigma

    got = np.array(sample(denoise, NOISE, STEPS).images)
    x = np.array(NOISE) * np.sqrt(82.0)
    d0 = 0.3 * x + 0.8
    x = 2 / 9 * x + 7 / 9 * d0
    d1 = 0.3 * x + 0.25
    x = 0.25 * x + 0.75 * d1 + 0.1 * (d1 - d0)
    d2 = 0.3 * x + 0.04
    assert asked == [8.0, 2.5, 0.4]
    np.testing.assert_allclose(got, d2 + 0.2 * (d2 - d1) - 0.05 * (d2 - d0), rtol=1e-5, atol=1e-6)


def test_a_constant_estimate_is_followed_whatever_the_weights():
    assert mx.allclose(sample(lambda x, sigma: mx.full(x.shape, 0.7), NOISE, STEPS).images, mx.array(0.7))


def test_weights_that_older_bundles_lack_are_zero():
    """Those of before had at most two a step."""
    told, few = SIGMAS[:-1], ((), (0.1,), (0.2, -0.05), (0.3, 0.1), (0.1, 0.2))
    padded = tuple(row + (0.0,) * (min(i, HISTORY - 1) - len(row)) for i, row in enumerate(few))
    old, new = (sample(GaussianDenoiser(), NOISE, LearnedSteps(SIGMAS, told, one)).images for one in (few, padded))
    assert padded != few and mx.array_equal(old, new)


def test_frozen_parameters_draw_what_the_unrolled_run_draws():
    rng = np.random.default_rng(0)
    parameters = unrolled.from_sigmas(SIGMAS)
    parameters = {k: v + mx.array(0.1 * rng.normal(size=v.shape).astype(np.float32)) for k, v in parameters.items()}
    parameters["weights"] = parameters["weights"] * mx.tri(5, HISTORY - 1, -1)
    steps = unrolled.freeze(parameters, ENDS)
    again = LearnedSteps.from_dict(json.loads(json.dumps(steps.to_dict())))
    assert again == steps
    drawn = sample(GaussianDenoiser(), NOISE, again).images
    assert mx.allclose(drawn, unrolled.run(GaussianDenoiser(), NOISE, parameters, ENDS), atol=1e-5)


@pytest.mark.parametrize("name", ["log_first", "log_gaps", "told", "weights"])
def test_the_gradient_is_that_of_finite_differences(name):
    parameters = unrolled.from_sigmas(SIGMAS)

    def loss(values):
        return unrolled.run(GaussianDenoiser(), NOISE, {**parameters, name: values}, ENDS).square().mean()

    slope = np.array(mx.grad(loss)(parameters[name])).reshape(-1)
    flat = np.array(parameters[name]).reshape(-1)
    for i in range(len(flat)):
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved[i] += sign * 1e-2
            ends.append(float(loss(mx.array(moved.reshape(parameters[name].shape)))))
        assert slope[i] == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.03, abs=2e-4)


def test_times_of_mlx_levels_are_numpys_and_carry_a_gradient():
    sigmas = np.geomspace(1e-4, 1e5, 57).astype(np.float32)
    times = SCHEDULE.t_from_sigma(mx.array(sigmas))
    np.testing.assert_allclose(np.array(times), SCHEDULE.t_from_sigma(sigmas.astype(np.float64)), atol=5e-3)
    inside = mx.array(1.3)
    slope = float(mx.grad(lambda s: SCHEDULE.t_from_sigma(s))(inside))
    assert slope == pytest.approx((SCHEDULE.t_from_sigma(1.3001) - SCHEDULE.t_from_sigma(1.2999)) / 2e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": (9.0, 2.0, 2.0, 0.0)}, "must fall strictly and end at 0.0"),
        ({"sigmas": (9.0, 2.0, 0.5, 0.1)}, "must fall strictly and end at 0.0"),
        ({"told": (8.0, 2.5)}, "3 levels take 3 told ones"),
        ({"told": (8.0, 2.5, 0.0)}, "told levels above 0"),
        ({"weights": ((), (0.1, 0.2), (0.2,))}, r"at most \[0, 1, 2\] weights, got 3 and \[0, 2, 1\]"),
        ({"weights": ((), (0.1,))}, r"at most \[0, 1, 2\] weights, got 3 and \[0, 1\]"),
        ({"weights": ((), (float("nan"),), (0.2, 0.1))}, "finite numbers"),
    ],
)
def test_steps_that_are_none_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        LearnedSteps(**{**STEPS.to_dict(), **changes})


def test_options_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="needs 5 told levels and 5 lists"):
        sample(GaussianDenoiser(), NOISE, SIGMAS, "learned", options=STEPS.options)


LEARNERS = {
    "gradient": lambda *problem: descend(*problem, "all", 400),
    "least squares": lambda *given: fit(*given[:2], [given[2]]),
}


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize("learn", LEARNERS.values(), ids=LEARNERS)
def test_learning_halves_the_error_of_the_best_searched_grid(learn, n):
    """On Gaussian pixels, whose exact results are known, on noises that were not learned on."""
    problem, selection, test = (gaussian_problem(seed, batches=4) for seed in (31, 32, 33))
    start = min(tuned_grids(problem, n, 48, 0).values(), key=lambda found: found.error).grid
    found = learn(problem, selection, start.sigmas)
    assert test.errors(found.steps).mean() < 0.5 * test.errors(start).mean()
    assert found.history[0][1] == pytest.approx(float(selection.errors(start).mean()), rel=1e-3)
    assert found.selection_error == min(error for _, error in found.history)


def test_a_descent_that_only_gets_worse_keeps_its_start():
    problem, selection = gaussian_problem(34), gaussian_problem(35)
    grid = log_snr_grid(SCHEDULE, 5, t_first=960, t_last=60)
    found = descend(problem, selection, grid.sigmas, "times", 20, learning_rate=3.0)
    assert rounded(problem, found.steps) == grid


def test_the_cost_of_a_descent_is_three_evaluations_an_iteration_and_the_judging():
    problem, selection = gaussian_problem(36, batches=2, batch_size=5), gaussian_problem(37, batches=1, batch_size=4)
    grid = log_snr_grid(SCHEDULE, 3, t_first=960, t_last=60)
    found = descend(problem, selection, grid.sigmas, "all", 20, judge_every=10)
    assert problem.meter.evaluations == 20 * 3 * 3 * 5
    assert found.evaluations == 20 * 3 * 3 * 5 + 3 * 3 * 4


def test_least_squares_go_further_on_the_same_evaluations_and_count_them():
    problem, selection = gaussian_problem(38, batches=2), gaussian_problem(39)
    grid = log_snr_grid(SCHEDULE, 5, t_first=960, t_last=60)
    found = fit(problem, selection, [grid.sigmas], 3)
    calls = sum(task.denoise.calls for one in (problem, selection) for task in one.tasks)
    assert found.evaluations == 8 * calls
    slow = descend(problem, selection, grid.sigmas, "all", 20)
    assert slow.evaluations > 0.9 * found.evaluations and found.selection_error < 0.5 * slow.selection_error


@pytest.mark.parametrize("n", [3, 7])
def test_a_run_that_parts_from_a_kept_one_is_the_whole_run_and_costs_what_differs(n):
    """To the bit, whichever number differs; a told level costs the calls from its own on, all others those after."""
    start = {
        name: np.array(value) for name, value in unrolled.from_sigmas([*np.geomspace(40, 0.1, n).tolist(), 0.0]).items()
    }
    start["told"] = np.linspace(-0.1, 0.1, n, dtype=np.float32)
    kept = KeptRun(GaussianDenoiser(), NOISE, frozen(start))
    assert kept.evaluations == n and mx.array_equal(
        kept.images, sample(GaussianDenoiser(), NOISE, frozen(start)).images
    )
    cost = {"log_first": lambda _: n, "told": lambda place: n - place[0]}
    for name, values in start.items():
        for place in np.ndindex(values.shape):
            if name == "weights" and place[1] >= place[0]:
                continue
            moved = values.copy()
            moved[place] += 0.01
            steps = frozen({**start, name: moved})
            images, evaluations = kept.part(steps)
            assert mx.array_equal(images, sample(GaussianDenoiser(), NOISE, steps).images), (name, place)
            assert evaluations == cost.get(name, lambda place: n - place[0] - 1)(place), (name, place)
    images, evaluations = kept.part(frozen(start))
    assert evaluations == 0 and mx.array_equal(images, kept.images)


def test_a_run_that_breaks_after_parting_says_where():
    steps = LearnedSteps((9.0, 2.0, 0.5, 0.0), (8.0, 2.5, 0.4), ((), (0.1,), ()))
    kept = KeptRun(GaussianDenoiser(), NOISE, steps)
    with pytest.raises(SamplerDivergedError, match=r"step 2 from sigma 0\.5"):
        kept.part(replace(steps, weights=((), (0.1,), (3e38, 3e38))))


def frozen(parameters):
    return unrolled.freeze({name: mx.array(value) for name, value in parameters.items()}, ENDS)


def test_of_several_starts_the_one_that_gets_furthest_goes_on():
    """A start that is worse at first may lie in a deeper valley; a useless one costs its scouting and no more."""
    grid, far = log_snr_grid(SCHEDULE, 4, t_first=960, t_last=60), log_snr_grid(SCHEDULE, 4)
    alone = [fit(gaussian_problem(38, batches=6), gaussian_problem(39), [start.sigmas], 8) for start in (grid, far)]
    both = fit(gaussian_problem(38, batches=6), gaussian_problem(39), [grid.sigmas, far.sigmas], 8)
    assert both.selection_error < 1.1 * min(found.selection_error for found in alone)
    assert both.evaluations < 1.5 * max(found.evaluations for found in alone)  # scouting looks at two batches of six


def test_a_fit_of_one_step_finds_the_best_single_level():
    """One step from sigma: the estimate there. The best level can be scanned for."""
    problem, selection = gaussian_problem(44), gaussian_problem(45)
    found = fit(problem, selection, [[3.0, 0.0]], 12)
    levels = np.geomspace(0.05, 200, 400)
    told = [LearnedSteps((s, 0.0), (t,), ((),)) for s in (found.steps.sigmas[0],) for t in levels]
    assert problem.errors(found.steps).mean() <= min(problem.errors(one).mean() for one in told) * 1.01


def test_the_shortest_path_is_the_shortest_of_all():
    """Against every subset of the levels, its misses taken step by step from simulated trajectories."""
    problem = gaussian_problem(41, batches=2, batch_size=6)
    grid = reference_grid(SCHEDULE, 9)
    trajectory = dynamic_programming.record(problem, grid, Meter())
    levels = np.array(grid.sigmas[:-1])
    points, outputs, noises, ends = _simulated(problem, grid)
    flat = ends.reshape(len(ends), -1).astype(np.float64)

    def kept(vectors, sigma):
        """Mean square of what is left of misses at the end, pixel by pixel, by the shrunk covariance of the ends."""
        from sklearn.covariance import ledoit_wolf

        # sklearn's covariance divides by N, ours by N - 1
        shrinkage = ledoit_wolf(flat)[1]
        covariance = np.cov(flat.T)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(16)
        values, axes = np.linalg.eigh(covariance)
        shrink = values / (values + sigma**2) if sigma else np.ones_like(values)
        return float(((vectors.reshape(len(vectors), -1) @ axes) ** 2 * shrink).mean())

    def length(path):
        first = path[0]
        total = kept(noises * np.sqrt(1 + levels[first] ** 2) - points[first], levels[first])
        for place, (i, k) in enumerate(itertools.pairwise(path)):
            ratio = levels[k] / levels[i]
            estimate = outputs[i]
            if place:
                h = path[place - 1]
                r = np.log(levels[h] / levels[i]) / np.log(levels[i] / levels[k])
                estimate = estimate + (outputs[i] - outputs[h]) / (2 * r)
            total += kept(ratio * points[i] + (1 - ratio) * estimate - points[k], levels[k])
        return total + kept(outputs[path[-1]] - ends, 0.0)

    for n in (1, 2, 4):
        paths = {path: length(path) for path in itertools.combinations(range(9), n)}
        assert dynamic_programming.shortest_path(trajectory, n) == min(paths, key=paths.get)
    with pytest.raises(ValueError, match="1 to 9 of them, got n=10"):
        dynamic_programming.shortest_path(trajectory, 10)


def _simulated(problem, grid):
    """(points, outputs) by level, noises, ends of DPM-Solver++(2M) along a grid, all images together."""
    noises = np.concatenate([np.array(task.noise) for task in problem.tasks]).astype(np.float64)
    x, points, outputs = noises * np.sqrt(1 + grid.sigmas[0] ** 2), [], []
    for i, (s, t) in enumerate(itertools.pairwise(grid.sigmas)):
        points.append(x)
        outputs.append(x * VARIANCES / (VARIANCES + s**2))
        estimate = outputs[-1]
        if i and t:
            r = np.log(grid.sigmas[i - 1] / s) / np.log(s / t)
            estimate = estimate + (outputs[-1] - outputs[-2]) / (2 * r)
        x = t / s * x + (1 - t / s) * estimate
    return points, outputs, noises, x


def test_evolution_beats_its_start_within_its_allowance():
    problem, test = gaussian_problem(51), gaussian_problem(52, batches=4)
    start = log_snr_grid(SCHEDULE, 5, t_first=960, t_last=200)
    found = evolve(problem, start.sigmas, 20_000, [0, 1], seed=0)
    assert found.error < 0.7 * problem.errors(start).mean()
    assert test.errors(found.grid).mean() < 0.8 * test.errors(start).mean()
    generation = 8 * 5 * 16  # candidates, evaluations a noise, noises
    assert found.evaluations <= 20_000 + generation
    assert grid_from_timesteps(SCHEDULE, found.grid.timesteps) == found.grid
    again = evolve(gaussian_problem(51), start.sigmas, 20_000, [0, 1], seed=0)
    assert again.grid == found.grid


def test_methods_come_one_by_one_and_the_later_start_from_the_best():
    problem, selection = gaussian_problem(61), gaussian_problem(62)
    effort = Effort(tries=12, iterations=10, seed=0)
    found = dict(
        find_steps(
            problem,
            selection,
            4,
            ("least_squares", "cma_es", "shortest_path", "gradient_levels", "gradient", "ppo"),
            effort,
        )
    )
    assert list(found) == [
        "log_snr_tuned",
        "karras_tuned",
        "shortest_path",
        "cma_es",
        "gradient_levels",
        "gradient",
        "least_squares",
    ]
    spent = problem.meter.evaluations + selection.meter.evaluations
    assert sum(one.evaluations for one in found.values()) <= spent
    best = min(found[name].error for name in ("log_snr_tuned", "karras_tuned"))
    assert found["cma_es"].error <= best
    for name in ("gradient", "least_squares"):
        assert isinstance(found[name].grid, LearnedSteps) and found[name].grid.num_steps == 4
        assert selection.errors(found[name].grid).mean() <= selection.errors(found["cma_es"].grid).mean() * 1.001
