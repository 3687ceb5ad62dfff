"""Step grids: their spacing, their ends, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.samplers import (
    GRID_ALIASES,
    GRIDS,
    Grid,
    grid_from_timesteps,
    karras_grid,
    log_snr_grid,
    make_grid,
    uniform_grid,
)
from mlx_tasks.samplers.grids import beta_grid

SCHEDULE = NoiseSchedule.cosine()


@pytest.mark.parametrize("name", GRIDS)
@given(n=st.integers(1, 600))
@settings(max_examples=30, deadline=None)
def test_every_grid_falls_strictly_to_a_final_zero(name, n):
    grid = GRIDS[name](SCHEDULE, n)
    assert isinstance(grid, Grid) and grid.num_steps == n == len(set(grid.timesteps))
    assert np.all(np.diff(grid.timesteps) < 0) and np.all(np.diff(grid.sigmas) < 0)
    assert grid.sigmas[-1] == 0.0
    np.testing.assert_array_equal(grid.sigmas[:-1], SCHEDULE.sigmas[list(grid.timesteps)])


@pytest.mark.parametrize("timesteps", [1000, 100])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 16, 30, 48, 100])
def test_the_uniform_grid_is_diffusers_trailing_one(n, timesteps):
    from diffusers import DDIMScheduler

    schedule = NoiseSchedule.cosine(timesteps)
    theirs = DDIMScheduler.from_config(schedule.to_config())
    theirs.set_timesteps(n)
    assert list(uniform_grid(schedule, n).timesteps) == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("timesteps", [1000, 100])
@pytest.mark.parametrize("n", [2, 3, 4, 7, 10, 16, 30, 48, 100])
def test_spacings_are_those_of_diffusers(spacing, n, timesteps):
    from diffusers import DDIMScheduler

    schedule = NoiseSchedule.cosine(timesteps)
    theirs = DDIMScheduler.from_config({**schedule.to_config(), "timestep_spacing": spacing})
    theirs.set_timesteps(n)
    assert list(make_grid(spacing, schedule, n).timesteps) == theirs.timesteps.tolist()


def test_quadratic_steps_are_even_in_the_root_of_time():
    assert make_grid("quadratic", SCHEDULE, 4, t_first=900).timesteps == (900, 400, 100, 0)
    assert make_grid("quadratic", SCHEDULE, 3, t_first=625, t_last=25).timesteps == (625, 225, 25)


def test_beta_steps_are_quantiles_of_the_distribution():
    """The arcsine law, Beta(1/2, 1/2), has its quantiles in closed form: sin^2(pi u / 2)."""
    shares = np.sin(np.pi / 2 * np.linspace(1, 0, 21)) ** 2
    np.testing.assert_allclose(beta_grid(SCHEDULE, 21, shape=0.5).timesteps, 999 * shares, atol=0.5)
    assert beta_grid(SCHEDULE, 21, shape=1.0) == make_grid("linspace", SCHEDULE, 21)
    gaps = -np.diff(make_grid("beta", SCHEDULE, 21).timesteps)
    assert gaps[0] < gaps[10] > gaps[-1]


def test_other_names_give_the_same_grids():
    assert GRID_ALIASES == {"trailing": "uniform", "exponential": "log_snr"}
    assert make_grid("trailing", SCHEDULE, 7) == uniform_grid(SCHEDULE, 7)
    assert make_grid("exponential", SCHEDULE, 7) == log_snr_grid(SCHEDULE, 7)


def test_log_snr_steps_are_even_in_log_sigma():
    grid = log_snr_grid(SCHEDULE, 9, t_first=980, t_last=60)
    assert grid.timesteps[0] == 980 and grid.timesteps[-1] == 60
    gaps = np.diff(np.log(grid.sigmas[:-1]))
    np.testing.assert_allclose(gaps, gaps.mean(), atol=0.03)  # half a timestep of rounding at either end


def test_karras_steps_are_even_in_the_root_and_rho_one_is_even_in_sigma():
    for rho in (7.0, 1.0):
        grid = karras_grid(SCHEDULE, 9, rho=rho, t_first=950, t_last=100)
        roots = np.array(grid.sigmas[:-1]) ** (1 / rho)
        gaps = np.diff(roots)
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.05)


def test_the_default_start_is_edms_and_the_end_is_timestep_zero():
    for make in (log_snr_grid, karras_grid):
        grid = make(SCHEDULE, 6)
        assert grid.sigmas[0] <= 80.0 < SCHEDULE.sigmas[grid.timesteps[0] + 1]
        assert grid.timesteps[-1] == 0


def test_crowded_timesteps_are_pushed_apart_inside_the_ends():
    for name in GRIDS:
        grid = GRIDS[name](SCHEDULE, 50, t_first=60, t_last=11)
        assert grid.timesteps == tuple(range(60, 10, -1))


def test_given_timesteps_are_kept():
    grid = grid_from_timesteps(SCHEDULE, np.array([999, 500, 3]))
    assert grid.timesteps == (999, 500, 3)
    assert grid.sigmas == (SCHEDULE.sigmas[999], SCHEDULE.sigmas[500], SCHEDULE.sigmas[3], 0.0)


@pytest.mark.parametrize(
    ("timesteps", "said"),
    [
        ([], r"\[\]"),
        ([10, 10], r"\[10, 10\]"),
        ([10, 20], r"\[10, 20\]"),
        ([1000, 1], "1000"),
        ([5, -1], "-1"),
        ([10.5, 2], "10.5"),
    ],
)
def test_bad_timesteps_are_refused_with_their_value(timesteps, said):
    with pytest.raises(ValueError, match=said):
        grid_from_timesteps(SCHEDULE, timesteps)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [0, -3, 1001, 2.5])
def test_a_bad_count_is_refused_with_its_value(name, n):
    with pytest.raises(ValueError, match=f"n={n}"):
        GRIDS[name](SCHEDULE, n)


def test_bad_ends_a_bad_rho_and_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="t_first=50, t_last=60"):
        log_snr_grid(SCHEDULE, 2, t_first=50, t_last=60)
    with pytest.raises(ValueError, match="t_first=1000"):
        karras_grid(SCHEDULE, 2, t_first=1000)
    with pytest.raises(ValueError, match="got -1"):
        karras_grid(SCHEDULE, 2, rho=-1)
    with pytest.raises(ValueError, match="got 0"):
        beta_grid(SCHEDULE, 2, shape=0)
    with pytest.raises(ValueError, match="uniform, log_snr, karras"):
        make_grid("cosine", SCHEDULE, 4)
