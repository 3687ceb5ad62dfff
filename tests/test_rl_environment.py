"""The environment: a Gymnasium one by both checkers, the very sampler behind it, no bad grid from any actions."""

import math
import warnings
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gaussian_problem import SCHEDULE, GaussianDenoiser, gaussian_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_tasks.errors import DataError
from mlx_tasks.rl.control_environment import CONTROL_ENVIRONMENT_ID, SamplerControlEnv
from mlx_tasks.rl.environment import ENVIRONMENT_ID, StepGridEnv
from mlx_tasks.rl.levels import default_fraction, median_grid, next_timestep
from mlx_tasks.rl.problem import Problem, Task, endpoint_errors, noise_seed, reference_grid
from mlx_tasks.samplers.grids import grid_from_timesteps, log_snr_grid, uniform_grid

ACTIONS = st.floats(allow_nan=False)


def episode(environment, actions, **options):
    """(observations, rewards, last info) of one episode; actions repeat if there are too few."""
    observation, _ = environment.reset(seed=0, options=options or None)
    observations, rewards = [observation], []
    for index in range(1000):
        action = np.array(actions[index % len(actions)], np.float32)
        observation, reward, terminated, truncated, info = environment.step(action)
        observations.append(observation)
        rewards.append(reward)
        assert not truncated
        if terminated:
            return observations, rewards, info
    raise AssertionError("the episode did not end")


def test_both_checkers_pass():
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    environment = gym.make(ENVIRONMENT_ID, problem=gaussian_problem(0), budgets=(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment.unwrapped, skip_render_check=True)
        check_env_sb3(environment.unwrapped)


def test_registered_and_vectorised():
    environments = gym.make_vec(
        ENVIRONMENT_ID, num_envs=3, vectorization_mode="sync", problem=gaussian_problem(0), budgets=(2, 5)
    )
    observations, _ = environments.reset(seed=1)
    assert observations.shape == (3, 8)
    done = np.zeros(3, int)
    for _ in range(12):
        observations, _, terminated, _, _ = environments.step(np.zeros((3, 2), np.float32))
        assert environments.observation_space.contains(observations)
        done += terminated
    assert (done >= 2).all()


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_an_episode_is_a_run_of_the_sampler_on_its_grid(solver, budget):
    problem = gaussian_problem(4, solver=solver)
    environment = StepGridEnv(problem, (budget,), speed_weight=0.1)
    _, rewards, info = episode(environment, [(0.3, -1), (-0.5, 0), (0.8, 0.5)], budget=budget, task=1)
    assert info["nfe"] == len(info["timesteps"]) == len(rewards) == budget
    assert info["error"] == pytest.approx(problem.error(info["timesteps"], [1]), rel=1e-5)
    uniform = float(problem.errors(uniform_grid(SCHEDULE, budget), [1]).mean())
    assert info["uniform_error"] == pytest.approx(uniform, rel=1e-6)
    assert rewards[:-1] == [-0.1] * (budget - 1)
    assert rewards[-1] == pytest.approx(math.log(uniform / info["error"]) - 0.1, rel=1e-4)


def test_one_network_evaluation_a_step():
    problem = gaussian_problem(5, batch_size=3)
    denoiser = problem.tasks[0].denoise
    environment = StepGridEnv(problem, (4,))
    problem.uniform_error(4, 0)
    calls, metered = denoiser.calls, problem.meter.evaluations
    environment.reset(options={"task": 0})
    for step in range(1, 5):
        environment.step(np.zeros(2, np.float32))
        assert denoiser.calls == calls + step
    assert problem.meter.evaluations == metered + 4 * 3


def test_stopping_early_saves_evaluations():
    environment = StepGridEnv(gaussian_problem(6), (6,), speed_weight=1.0)
    _, rewards, info = episode(environment, [(0, 0), (0, 0.79), (0, 0.81)])
    assert info["nfe"] == 3 and len(rewards) == 3
    assert sum(rewards) == pytest.approx(math.log(info["uniform_error"] / info["error"]) - 3, rel=1e-5)


def test_action_zero_gives_the_evenly_spaced_grid():
    for n in (1, 4, 10):
        environment = StepGridEnv(gaussian_problem(7), (n,))
        _, _, info = episode(environment, [(0, 0)])
        midpoints = [1000 * (1 - (k + 0.5) / n) - 1 for k in range(n)]
        assert np.allclose(info["timesteps"], midpoints, atol=2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.lists(st.tuples(ACTIONS, st.floats(-1, 0.5)), min_size=1, max_size=20))
def test_no_actions_make_a_bad_grid(budget, actions):
    environment = StepGridEnv(gaussian_problem(8, batches=1, batch_size=1), (budget,))
    with np.errstate(over="ignore"):
        observations, rewards, info = episode(environment, actions)
    steps = info["timesteps"]
    assert len(steps) == budget and all(a > b for a, b in pairwise(steps)) and 0 <= steps[-1] <= steps[0] <= 999
    assert grid_from_timesteps(SCHEDULE, steps).num_steps == budget
    assert all(environment.observation_space.contains(o) for o in observations)
    assert np.isfinite(rewards).all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_levels_leave_room_for_those_to_come_however_short_the_schedule(data):
    total = data.draw(st.integers(2, 30))
    num_steps = data.draw(st.integers(1, total))
    steps, previous = [], total
    for index in range(num_steps):
        previous = next_timestep(data.draw(ACTIONS), index, num_steps, previous)
        steps.append(previous)
    assert len(set(steps)) == num_steps and steps == sorted(steps, reverse=True) and 0 <= steps[-1] <= steps[0] < total


def test_actions_are_clipped_and_a_larger_one_goes_further():
    assert next_timestep(7.0, 1, 4, 900) == next_timestep(1.0, 1, 4, 900)
    assert next_timestep(-math.inf, 1, 4, 900) == next_timestep(-1.0, 1, 4, 900)
    reached = [next_timestep(a, 1, 4, 900) for a in np.linspace(-1, 1, 9)]
    assert reached == sorted(reached, reverse=True) and len(set(reached)) == 9
    assert default_fraction(0, 4) == 1 / 8 and default_fraction(3, 4) == 1 / 1.5
    with pytest.raises(ValueError, match="nan"):
        next_timestep(math.nan, 0, 4, 1000)
    with pytest.raises(ValueError, match="does not fit"):
        next_timestep(0.0, 0, 4, 3)


@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True), min_size=1, max_size=9))
def test_the_median_of_grids_is_a_grid(lists):
    grids = [sorted(levels, reverse=True) for levels in lists]
    median = median_grid(grids)
    assert all(a > b for a, b in pairwise(median))
    lengths = [len(grid) for grid in grids]
    assert lengths.count(len(median)) == max(map(lengths.count, lengths))
    assert median_grid([grids[0]] * 3) == tuple(grids[0])


def test_a_result_that_is_not_finite_ends_the_episode_with_a_fixed_reward():
    good = gaussian_problem(9, batches=1)

    class Broken(GaussianDenoiser):
        def __call__(self, x, sigma):
            return super().__call__(x, sigma) * (float("nan") if sigma < 1 else 1.0)

    task = Task(good.tasks[0].noise, Broken(), good.tasks[0].truth)
    environment = StepGridEnv(Problem(SCHEDULE, "ddim", (task,)), (4,), speed_weight=0.0)
    environment.problem._uniform[4, 0] = 1.0
    observations, rewards, info = episode(environment, [(0, 0)])
    assert rewards[-1] == -5.0 and info["nfe"] < 4
    assert environment.observation_space.contains(observations[-1])


def test_bad_problems_are_refused():
    with pytest.raises(DataError, match="heun takes"):
        gaussian_problem(0, solver="heun")
    with pytest.raises(ValueError, match=r"budgets .* got \[1000\]"):
        StepGridEnv(gaussian_problem(0), (1000,))


def test_the_many_step_result_comes_near_the_truth():
    problem = gaussian_problem(10)
    errors = [float(problem.errors(reference_grid(SCHEDULE, n)).mean()) for n in (32, 64, 128)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # second order
    assert errors[1] < 2e-3


def test_errors_are_root_mean_squares_of_each_image():
    images, truth = np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2, 1))
    images[1, 0, 0, 0] = 2.0
    assert endpoint_errors(images, truth).tolist() == [0.0, 1.0]


def test_purposes_share_no_noise():
    seeds = {noise_seed(seed, purpose) for seed in range(50) for purpose in ("tuning", "selection", "test")}
    assert len(seeds) == 150


def test_action_zero_follows_the_start_grid():
    start = {4: (900, 610, 222, 31), 6: uniform_grid(SCHEDULE, 6).timesteps}
    environment = StepGridEnv(gaussian_problem(7), (4, 6), start=start)
    for budget, grid in start.items():
        assert tuple(episode(environment, [(0, 0)], budget=budget)[2]["timesteps"]) == tuple(grid)


@pytest.mark.parametrize(("reward", "per_step"), [("quality", 0.0), ("speed", 0.0), ("hybrid", -0.3)])
def test_rewards_are_those_of_the_table(reward, per_step):
    environment = StepGridEnv(gaussian_problem(3), (4,), speed_weight=0.3, reward=reward)
    _, rewards, info = episode(environment, [(0.3, -1), (0.5, -1), (0.5, 1)])
    final = math.log(info["uniform_error"] / info["error"]) if reward != "speed" else (
        0.25 if info["error"] <= info["uniform_error"] else -1.0
    )  # fmt: skip
    assert rewards == pytest.approx([per_step, per_step, per_step + final])


def test_speed_pays_for_what_is_left_only_where_the_image_is_as_good():
    levels = (*log_snr_grid(SCHEDULE, 6, t_first=950, t_last=90).timesteps, 20, 0)
    environment = StepGridEnv(gaussian_problem(3), (8,), reward="speed", start={8: levels})
    assert sum(episode(environment, [(0, 1)])[1]) == -1.0  # one evaluation of pure noise
    _, rewards, info = episode(environment, [(0, -1)] * 5 + [(0, 1)])
    assert info["error"] < info["uniform_error"] and sum(rewards) == pytest.approx(1 - 6 / 8)


def test_leaving_the_range_or_collapsing_earns_less_than_doing_nothing():
    """Attempts at the reward: every image the mean image, one step, extreme levels; and a search over all actions."""
    problem = gaussian_problem(12, batches=1, batch_size=32)
    environment = StepGridEnv(problem, (5,), reward="quality")
    truth = problem.tasks[0].truth

    def attempt(actions):
        _, rewards, _ = episode(environment, actions, budget=5, task=0)
        images = np.array(environment._estimate)
        spread = images.std(axis=0).mean() / truth.std(axis=0).mean()
        return sum(rewards), spread, np.abs(images).max() / np.abs(truth).max()

    honest = attempt([(0, 0)])
    collapsed = attempt([(-1, 0)])  # all levels near pure noise: the estimate is the mean image
    at_once = attempt([(0, 1)])
    assert collapsed[1] < 0.5 and collapsed[0] < honest[0] - 1 and at_once[0] < honest[0] - 1
    rng = np.random.default_rng(0)
    tried = [attempt([(a, 0) for a in rng.uniform(-1, 1, 5)]) for _ in range(300)]
    rewards, spreads, ranges = (np.array(column) for column in zip(*tried, strict=True))
    best = rewards.argsort()[-10:]
    assert (np.abs(spreads[best] - 1) < 0.1).all() and (ranges[best] < 1.1).all()
    assert rewards[(spreads < 0.5) | (ranges > 1.5)].max(initial=-9) < honest[0]


def guided_problem(seed):
    """Guidance that doubles the estimate's distance from a worse one; the unguided branch costs half."""
    problem = gaussian_problem(seed, batches=1)
    task = problem.tasks[0]

    class Guided(GaussianDenoiser):
        evaluations = 2

    return Problem(SCHEDULE, "dpmpp_2m", (Task(task.noise, Guided(), task.truth, GaussianDenoiser()),))


def test_control_counts_what_guidance_costs_and_takes_the_orders_it_is_told():
    problem = guided_problem(1)
    environment = SamplerControlEnv(problem, (8,), reward="quality")
    task = problem.tasks[0]
    _, _, info = episode(environment, [(0, 0, 0, 1), (0, 0, 1, 1), (0, 0, -1, -1), (0, 0, 0, -1)])
    assert info["guided"][:4] == [True, True, False, False] and info["orders"][:4] == [2, 3, 1, 2]
    assert info["nfe"] == sum(1 + on for on in info["guided"]) == 8
    assert task.denoise.calls >= 2 and task.unguided.calls >= 2
    before = problem.meter.evaluations
    _, _, info = episode(environment, [(0, 0, 0, -1)])
    assert len(info["timesteps"]) == 8 == info["nfe"]
    assert problem.meter.evaluations - before >= 8 * len(task.noise)
    observations, _, _ = episode(environment, [(0, 0, 1, 1)])
    assert observations[0].shape == (10,) and observations[1][8:].tolist() == [1.0, 1.0]


def test_control_at_its_middle_is_the_plain_environment():
    plain = StepGridEnv(gaussian_problem(4), (5,), reward="quality")
    control = SamplerControlEnv(gaussian_problem(4), (5,), reward="quality")
    one = episode(plain, [(0.2, 0), (-0.3, 0)], task=1)
    two = episode(control, [(0.2, 0, 0, 0), (-0.3, 0, 0, 0)], task=1)
    assert one[2]["timesteps"] == two[2]["timesteps"] and sum(one[1]) == pytest.approx(sum(two[1]))


@pytest.mark.parametrize("problem", [gaussian_problem(0), guided_problem(0)])
def test_both_checkers_pass_on_control(problem):
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    environment = gym.make(CONTROL_ENVIRONMENT_ID, problem=problem, budgets=(2, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment.unwrapped, skip_render_check=True)
        check_env_sb3(environment.unwrapped)
