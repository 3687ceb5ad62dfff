"""Plain search and PPO against known optima; policies on disk; learning that was killed goes on."""

import itertools
import json

import gymnasium as gym
import numpy as np
import pytest
from gaussian_problem import SCHEDULE, gaussian_problem

from mlx_tasks.errors import DataError
from mlx_tasks.learned_steps.methods import tuned_grids
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.rl import tuning
from mlx_tasks.rl.comparison import Entry, judge, table
from mlx_tasks.rl.plain_search import karras_maker, log_snr_maker, search_grid
from mlx_tasks.rl.policy import greedy_episode, load_policy, make_policy, policy_arrays, save_policy
from mlx_tasks.rl.ppo import Learner, PpoOptions
from mlx_tasks.samplers.grids import karras_grid, log_snr_grid, uniform_grid


def test_plain_search_comes_close_to_brute_force():
    problem = gaussian_problem(1, batches=1)
    for n in (4, 8):
        ends = itertools.product(range(600, 1000, 15), [round((i / 30) ** 2 * 499) for i in range(31)])
        brute = min(float(problem.errors(log_snr_grid(SCHEDULE, n, t_first=a, t_last=b)).mean()) for a, b in ends)
        found = [tuned_grids(problem, n, 48, seed)["log_snr_tuned"] for seed in range(3)]
        assert all(result.error < 1.05 * brute for result in found)
        assert brute < 0.5 * float(problem.errors(log_snr_grid(SCHEDULE, n)).mean())
        assert all(result.error == pytest.approx(problem.error(result.grid.timesteps)) for result in found)


def test_plain_search_finds_the_bottom_of_a_bowl_and_counts_its_tries():
    seen = []

    def error(grid):
        seen.append(grid.timesteps)
        return abs(grid.timesteps[0] - 800) + abs(grid.timesteps[-1] - 40)

    found = search_grid(error, log_snr_maker(SCHEDULE, 5), 2, 60, seed=0)
    assert found.error <= 40 and found.tried == 60
    assert len(seen) == len(set(seen)) <= 60  # no grid twice
    again = search_grid(error, log_snr_maker(SCHEDULE, 5), 2, 60, seed=0)
    assert (found.grid, found.error) == (again.grid, again.error)
    with pytest.raises(ValueError, match="at least one"):
        search_grid(error, log_snr_maker(SCHEDULE, 5), 2, 0, seed=0)


def test_makers_span_the_grids_they_name():
    ends = karras_maker(SCHEDULE, 4)(np.array([1.0, 0.0, 0.0])), log_snr_maker(SCHEDULE, 4)(np.array([0.0, 1.0]))
    assert ends[0] == karras_grid(SCHEDULE, 4, rho=1.0, t_first=999, t_last=0)
    assert ends[1] == log_snr_grid(SCHEDULE, 4, t_first=500, t_last=497)
    middle = karras_maker(SCHEDULE, 4)(np.array([0.5, 0.5, 1.0]))
    assert middle == karras_grid(SCHEDULE, 4, rho=20.0, t_first=750, t_last=125)


def test_cost_of_plain_search_is_what_the_denoiser_was_called():
    problem = gaussian_problem(2, batches=3, batch_size=5)
    found = tuned_grids(problem, 4, 10, 0)
    calls = sum(task.denoise.calls for task in problem.tasks)
    assert sum(result.evaluations for result in found.values()) == calls * 5 == problem.meter.evaluations
    assert problem.tasks[2].denoise.calls == 0  # the first two batches are enough for two numbers


class Target(gym.Env):
    """One step; the reward is less the squared distance of the first action from half of the first observation."""

    observation_space = gym.spaces.Box(-1, 1, (8,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(-1, 1, 8).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        gap = float(action[0]) - 0.5 * float(self.seen[0])
        return self.seen, -gap * gap, True, False, {"gap": gap}


def target_value(policy):
    environment = Target()
    environment.reset(seed=99)
    return float(np.mean([greedy_episode(policy, environment, {})[0] for _ in range(50)]))


def test_ppo_solves_a_bandit_that_depends_on_the_state():
    learner = Learner(Target, PpoOptions(steps=2048, num_envs=4, seed=0), target_value)
    before = target_value(learner.best)
    history = list(learner.iterate())
    assert before < -0.05 and target_value(learner.best) > -0.01
    assert history[-1].best_reward == pytest.approx(target_value(learner.best))
    assert history[-1].steps == 2048 and len(history) == 16


@pytest.fixture(scope="module")
def learned():
    """PPO on the Gaussian problem for three budgets, and the problem it is judged on."""
    budgets, selection = (4, 6, 8), gaussian_problem(12)
    learner = tuning.make_learner(gaussian_problem(11), selection, budgets, 0.05, PpoOptions(steps=2048, seed=0))
    list(learner.iterate())
    return learner, selection, budgets


def test_ppo_learns_grids_near_the_best_tuned_ones(learned):
    """Fresh noise; the untrained policy, the evenly spaced grid, and the best of two tuned grids as yardsticks."""
    learner, selection, budgets = learned
    test, tuning_problem = gaussian_problem(13, batches=4), gaussian_problem(11)
    for budget in budgets:
        exported = tuning.export_grid(learner.best, selection, budgets, budget)
        error = test.error(exported.timesteps)
        tuned = min(test.error(f.grid.timesteps) for f in tuned_grids(tuning_problem, budget, 48, 0).values())
        uniform = float(test.errors(uniform_grid(SCHEDULE, budget)).mean())
        assert len(exported.timesteps) == budget
        assert error < 0.3 * uniform
        assert np.log(uniform / error) > 0.65 * np.log(uniform / tuned)
    rewards = [record.greedy_reward for record in learner.history]
    assert learner.history[-1].best_reward == max(rewards) > rewards[0] + 0.3
    explored = [record.reward for record in learner.history]
    assert np.mean(explored[-4:]) > np.mean(explored[:4]) + 0.3


def test_learning_cost_counts_every_evaluation(learned):
    learner = learned[0]
    assert learner.history[-1].evaluations >= 2048 * 8  # at least one evaluation of 8 images a step
    assert [r.evaluations for r in learner.history] == sorted(r.evaluations for r in learner.history)


def test_a_policy_read_back_acts_the_same(learned, tmp_path):
    policy = learned[0].best
    save_policy(tmp_path / "policy", policy, {"budgets": [4, 6, 8]})
    read = load_policy(tmp_path / "policy")
    observations = np.random.default_rng(0).uniform(-1, 1, (64, 8)).astype(np.float32)
    for given in (observations, observations[0]):
        expected, _ = policy.predict(given, deterministic=True)
        assert np.array_equal(read.predict(given, deterministic=True)[0], expected)
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["policy.json", "policy.safetensors"]
    assert json.loads((tmp_path / "policy" / "policy.json").read_text())["notes"] == {"budgets": [4, 6, 8]}


def test_a_broken_policy_is_named(tmp_path):
    save_policy(tmp_path / "policy", make_policy(8, 2), {})
    weights = tmp_path / "policy" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DataError, match="holds no policy"):
        load_policy(tmp_path / "policy")
    with pytest.raises(DataError, match="run the tune stage"):
        load_policy(tmp_path / "nowhere")


def test_a_policy_of_another_model_is_refused(tmp_path):
    save_policy(tmp_path / "policy", make_policy(8, 2), {"bundle": "a" * 64})
    assert load_policy(tmp_path / "policy", "a" * 64) and load_policy(tmp_path / "policy")
    with pytest.raises(DataError, match="learned on model aaaaaaaaaaaa, not on bbbbbbbbbbbb: run the tune stage"):
        load_policy(tmp_path / "policy", "b" * 64)


def test_killed_learning_goes_on_to_the_same_policy(tmp_path):
    """Stopped after the third of six iterations, in a new process's state: equal weights, equal rewards."""

    def learner():
        options = PpoOptions(steps=192, num_envs=2, rollout=32, seed=3)
        return tuning.make_learner(gaussian_problem(21), gaussian_problem(22), (3, 5), 0.05, options)

    whole = learner()
    records = list(whole.iterate())
    for count, _ in enumerate(learner().iterate(tmp_path, "a"), start=1):
        if count == 4:  # the fourth is recorded and its checkpoint not yet written
            break
    resumed = learner()
    rest = list(resumed.iterate(tmp_path, "a"))
    assert [record.number for record in rest] == [4, 5, 6]
    timeless = [(r.number, r.reward, r.greedy_reward, r.best_reward) for r in records]
    assert [(r.number, r.reward, r.greedy_reward, r.best_reward) for r in resumed.history] == timeless
    for name, value in policy_arrays(whole._ppo.policy).items():
        assert np.array_equal(value, policy_arrays(resumed._ppo.policy)[name])
        assert np.array_equal(policy_arrays(whole.best)[name], policy_arrays(resumed.best)[name])
    other = learner()
    next(other.iterate(tmp_path, "b"))
    assert other.history[0].number == 1  # checkpoints of other params are not taken


def test_learning_ends_when_it_gains_no_more():
    patient = Learner(Target, PpoOptions(steps=2048, num_envs=4, seed=0, patience=4), target_value)
    history = list(patient.iterate())
    assert patient.converged and 4 < len(history) < 16
    assert history[-1].best_reward < history[-5].best_reward + 0.01
    assert target_value(patient.best) > -0.02
    never = Learner(Target, PpoOptions(steps=256, num_envs=4, seed=0), target_value)
    assert len(list(never.iterate())) == 2 and not never.converged


def test_a_policy_goes_on_from_another(learned):
    """A second problem of the same kind: its first judgement is the old policy's, and it learns on from there."""
    learner, _, budgets = learned
    options = PpoOptions(steps=128, num_envs=4, seed=5)
    fresh = tuning.make_learner(gaussian_problem(31), gaussian_problem(32), budgets, 0.05, options)
    warm = tuning.make_learner(gaussian_problem(31), gaussian_problem(32), budgets, 0.05, options, policy=learner.best)
    assert next(warm.iterate()).best_reward > next(fresh.iterate()).best_reward + 0.3


def test_an_untrained_policy_follows_the_start_grid_and_learning_never_ends_below_it():
    problem, selection = gaussian_problem(41), gaussian_problem(42)
    start = {4: tuned_grids(problem, 4, 24, 0)["karras_tuned"].grid.timesteps}
    learner = tuning.make_learner(problem, selection, (4,), 0.0, PpoOptions(steps=256, num_envs=4, seed=1), start=start)
    exported = tuning.export_grid(learner.best, selection, (4,), 4, start)
    assert np.abs(np.subtract(exported.timesteps, start[4])).max() < 60
    list(learner.iterate())
    after = tuning.export_grid(learner.best, selection, (4,), 4, start)
    assert selection.error(after.timesteps) <= 1.02 * selection.error(exported.timesteps)


def entries(errors, **steps):
    """Methods -> their errors, on grids of 4 steps or as many as are given."""
    return {name: Entry(uniform_grid(SCHEDULE, steps.get(name, 4)), np.asarray(e, float)) for name, e in errors.items()}


def test_the_plainest_of_those_within_the_noise_is_kept():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 1.5, 100)
    jitter = rng.normal(0, 0.3, 100)
    jitter -= jitter.mean()
    better = judge(entries({"ppo": base - 0.01, "karras_tuned": base, "uniform": base + 1}), 0)
    assert (better.kept, better.rival) == ("ppo", "karras_tuned") and better.difference.high < 0
    assert better.difference == Estimate(pytest.approx(-0.01), pytest.approx(-0.01), pytest.approx(-0.01))
    assert "better than karras_tuned beyond the noise" in better.text
    same = judge(entries({"ppo": base + jitter - 1e-4, "karras_tuned": base}), 0)
    assert same.kept == "karras_tuned" and "as good as ppo within the noise, and plainer" in same.text
    worse = judge(entries({"least_squares": base + 0.1, "log_snr_tuned": base, "uniform": base + 1}), 0)
    assert worse.kept == "log_snr_tuned" and worse.rival == "least_squares"
    three = entries({"uniform": base + 0.5, "cma_es": base + 0.2 * jitter, "least_squares": base})
    assert judge(three, 0).kept == "cma_es"
    with pytest.raises(ValueError, match=r"at least two methods of uniform, .*, got karras"):
        judge(entries({"karras": base}), 0)


def test_fewer_evaluations_win_within_the_noise_and_not_beyond_it():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 1.5, 100)
    jitter = rng.normal(0, 0.3, 100)
    jitter -= jitter.mean()
    shorter = judge(entries({"ppo": base + jitter, "karras_tuned": base}, ppo=3), 0)
    assert shorter.kept == "ppo" and "in 1 evaluation fewer" in shorter.text
    assert judge(entries({"ppo": base + 0.1, "karras_tuned": base}, ppo=3), 0).kept == "karras_tuned"


def test_pairing_finds_a_difference_that_is_small_beside_the_spread():
    base = np.random.default_rng(1).uniform(0, 10, 200)
    given = entries({"ppo": base - 0.02 - 0.01 * np.sin(np.arange(200)), "karras_tuned": base})
    rows = table(given, {}, "dpmpp_2m", 2, 0)
    assert rows["ppo"]["high"] > rows["karras_tuned"]["low"]  # the intervals overlap
    assert judge(given, 0).kept == "ppo"
    assert rows["ppo"]["low"] < rows["ppo"]["error"] < rows["ppo"]["high"]
    assert rows["ppo"]["nfe"] == 8 and rows["ppo"]["learned"] is None
