"""The noise schedule: diffusers' tables, and what follows from them."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.errors import DataError

CURVES = ("squaredcos_cap_v2", "linear", "scaled_linear")


@pytest.mark.parametrize("timesteps", [1000, 100, 37])
def test_the_cosine_table_is_diffusers_to_the_bit(timesteps):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=timesteps).alphas_cumprod
    assert np.array_equal(NoiseSchedule.cosine(timesteps).alpha_bar, theirs.numpy().astype(np.float64))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_users_scheduler_config_gives_the_users_table(curve, name):
    import diffusers

    theirs = getattr(diffusers, name)(beta_schedule=curve, beta_start=0.00085, beta_end=0.012)
    ours = NoiseSchedule.from_config(dict(theirs.config))
    assert ours.prediction_type == "epsilon"
    np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=1.5e-6, atol=0)


@pytest.mark.parametrize("curve", CURVES)
def test_a_written_config_reads_back_and_opens_in_diffusers(curve):
    from diffusers import DDIMScheduler

    schedule = NoiseSchedule(beta_schedule=curve, num_train_timesteps=200, prediction_type="sample")
    assert NoiseSchedule.from_config(schedule.to_config()) == schedule
    theirs = DDIMScheduler.from_config(schedule.to_config())
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), schedule.alpha_bar, rtol=1e-6)
    assert theirs.config.prediction_type == "sample" and theirs.config.timestep_spacing == "trailing"
    assert theirs.config.clip_sample is False


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "rescale_betas_zero_snr needs"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must hold 1000 numbers, got 2"),
        ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, "above 0 and below 1"),
        ({"trained_betas": 3}, "trained_betas must be a list of numbers, got 3"),
        ({"trained_betas": ["0.1", 0.2], "num_train_timesteps": 2}, "must be a finite number, got '0.1'"),
        ({"trained_betas": [0.9] * 400, "num_train_timesteps": 400}, "alpha_bar 0"),
        ({"num_train_timesteps": 10**9}, "from 2 to 100000, got 1000000000"),
        ({"num_train_timesteps": 1000.0}, "got 1000.0"),
        ({"beta_schedule": "linear", "beta_start": "0.1"}, "beta_start must be a finite number, got '0.1'"),
        ({"beta_end": float("nan")}, "beta_end must be a finite number, got nan"),
        ({"rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr must be true or false"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"num_train_timesteps": "many"}, "many"),
        ({"beta_schedule": "linear", "beta_end": 1.5}, "1.5"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(change, named):
    with pytest.raises(DataError, match=named.replace("[", r"\[")):
        NoiseSchedule.from_config(NoiseSchedule.cosine().to_config() | change)


@pytest.mark.parametrize("timesteps", [1000, 50])
def test_the_sigmoid_table_is_diffusers(timesteps):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="sigmoid", num_train_timesteps=timesteps).alphas_cumprod
    ours = NoiseSchedule(beta_schedule="sigmoid", num_train_timesteps=timesteps, prediction_type="epsilon")
    np.testing.assert_allclose(ours.alpha_bar, theirs.numpy(), rtol=2e-6)


@pytest.mark.parametrize("curve", CURVES)
def test_zero_terminal_snr_is_diffusers_and_keeps_the_first_timestep(curve):
    from diffusers import DDIMScheduler

    ours = NoiseSchedule(beta_schedule=curve, rescale_betas_zero_snr=True)
    theirs = DDIMScheduler.from_config(ours.to_config()).alphas_cumprod.numpy()
    assert theirs[-1] == 0.0 and ours.alpha_bar[-1] <= 2.0**-24 and ours.sigmas[-1] >= 4095
    np.testing.assert_allclose(ours.alpha_bar[:-1], theirs[:-1], rtol=1e-3, atol=1e-9)
    assert np.all(np.diff(ours.sigmas) > 0)
    assert ours.alpha_bar[0] == pytest.approx(NoiseSchedule(beta_schedule=curve).alpha_bar[0], rel=1e-6)
    assert NoiseSchedule.from_config(ours.to_config()) == ours


def test_a_schedule_of_any_shape_is_kept_as_betas():
    from diffusers import DDIMScheduler

    wanted = 1.0 / (1.0 + np.exp(np.linspace(-9.0, 7.0, 300)))
    ours = NoiseSchedule.from_alpha_bar(wanted)
    np.testing.assert_allclose(ours.alpha_bar, wanted, rtol=1e-4)
    assert NoiseSchedule.from_config(ours.to_config()) == ours and hash(ours)
    theirs = DDIMScheduler.from_config(ours.to_config()).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.alpha_bar, theirs, rtol=2e-6)
    for wrong in ([0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [[0.5, 0.4]]):
        with pytest.raises(DataError, match="fall strictly inside"):
            NoiseSchedule.from_alpha_bar(wrong)


@pytest.mark.parametrize("curve", CURVES)
def test_sigmas_rise_and_are_std_over_alpha(curve):
    schedule = NoiseSchedule(beta_schedule=curve)
    t = np.arange(1000)
    assert np.all(np.diff(schedule.sigmas) > 0)
    np.testing.assert_allclose(schedule.std(t) / schedule.alpha(t), schedule.sigmas, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(t) ** 2, schedule.alpha_bar, rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.std(t) ** 2, 1.0, rtol=1e-12)


@given(st.floats(0.0, 999.0))
@settings(max_examples=60, deadline=None)
def test_a_timestep_comes_back_from_its_noise_level(t):
    schedule = NoiseSchedule.cosine()
    assert schedule.t_from_sigma(schedule.sigma_from_t(t)) == pytest.approx(t, abs=1e-8)


def test_between_timesteps_log_sigma_is_linear_and_outside_it_stops():
    schedule = NoiseSchedule.cosine()
    assert schedule.sigma_from_t(10.5) == pytest.approx(np.sqrt(schedule.sigmas[10] * schedule.sigmas[11]), rel=1e-12)
    assert schedule.t_from_sigma(0.0) == 0.0
    assert schedule.t_from_sigma(1e9) == 999.0


def test_mlx_timesteps_give_mlx_values():
    schedule = NoiseSchedule.cosine()
    t = mx.array([0, 500, 999])
    assert schedule.alpha(t).dtype == mx.float32
    np.testing.assert_allclose(np.array(schedule.alpha(t)), schedule.alpha(np.array([0, 500, 999])), rtol=1e-6)
    np.testing.assert_allclose(np.array(schedule.std(t)), schedule.std(np.array([0, 500, 999])), rtol=1e-6)


def test_equal_parameters_are_equal_schedules():
    assert NoiseSchedule.cosine() == NoiseSchedule.cosine(1000)
    assert hash(NoiseSchedule.cosine()) == hash(NoiseSchedule.cosine())
    assert NoiseSchedule.cosine(500) != NoiseSchedule.cosine()
    with pytest.raises(ValueError, match="read-only"):
        NoiseSchedule.cosine().alpha_bar[0] = 0.0
