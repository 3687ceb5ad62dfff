"""Runs after a diffusers scheduler_config.json, against the real schedulers: closed-form denoisers and a network."""

import inspect
import json

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_tasks.config_training import Model
from mlx_tasks.errors import DataError
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import network_denoiser
from mlx_tasks.samplers.following import CLASSES, plan_from_config
from mlx_tasks.samplers.noise import normal, split

NOISE = mx.random.normal((3, 4, 4, 1), key=mx.random.key(0))
KEY = mx.random.key(5)
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}

PLAIN = {key: value for key, value in SCALED.items() if key != "steps_offset"}
SPACINGS = ("linspace", "leading", "trailing")
SHAPES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
LOW_END = {**SCALED, "final_sigmas_type": "sigma_min"}
EULERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")
DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
PNDM = "PNDMScheduler"
SINGLE, LCM = "DPMSolverSinglestepScheduler", "LCMScheduler"
FLOW_EULER, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
EDM_EULER, EDM_DPM = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
ZERO_SNR = {**SCALED, "steps_offset": 0, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.2}
TABLE = {"trained_betas": np.linspace(0.001, 0.03, 400).tolist(), "num_train_timesteps": 400}

CASES = [
    *(("DDIMScheduler", {"clip_sample": False, **more}, n) for n in (4, 10) for more in (
        {}, COSINE, {**SCALED, "set_alpha_to_one": False}, {**COSINE, "timestep_spacing": "trailing"},
        {"prediction_type": "sample"},
    )),
    ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 0.8, **COSINE}, 10),
    ("DDIMScheduler", {"clip_sample": True}, 7),
    ("DDPMScheduler", {"clip_sample": False}, 10),
    ("DDPMScheduler", {"clip_sample": True, **COSINE}, 10),
    ("DDPMScheduler", {"clip_sample": False, **SCALED}, 10),
    *((name, {"timestep_spacing": spacing, **more}, 7) for name in EULERS for spacing in SPACINGS
      for more in ({}, SCALED, {**SCALED, "prediction_type": "v_prediction"})),
    *((name, {shape: True, **SCALED}, 8) for name in (EULERS[0], EULERS[2]) for shape in SHAPES),
    ("HeunDiscreteScheduler", {"clip_sample": True, "clip_sample_range": 0.9}, 6),
    *((DPM, {"solver_order": order, "timestep_spacing": spacing, **more}, n)
      for order in (1, 2, 3) for spacing, n in zip(SPACINGS, (6, 9, 20), strict=True)
      for more in (SCALED, COSINE, LOW_END, {**SCALED, "lower_order_final": False})),
    *((DPM, {"algorithm_type": "dpmsolver", "solver_order": order, **LOW_END}, 8) for order in (1, 2, 3)),
    *((DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": order, **SCALED}, 9) for order in (1, 2)),
    *((name, {shape: True, **more}, 9) for name in (DPM, UNIPC) for shape in SHAPES
      for more in (SCALED, {**SCALED, "beta_end": 0.02})),
    (DPM, {"lambda_min_clipped": -5.1, **COSINE}, 8),
    (DPM, {"euler_at_final": True, **SCALED}, 8),
    *((UNIPC, {"solver_order": order, "solver_type": kind, "timestep_spacing": spacing, **more}, 8)
      for order in (1, 2, 3) for kind, more in (("bh1", LOW_END), ("bh2", LOW_END), ("bh2", SCALED))
      for spacing in ("linspace", "trailing")),
    *((DEIS, {"solver_order": order, "timestep_spacing": spacing, **SCALED}, n)
      for order in (1, 2, 3) for spacing, n in zip(SPACINGS, (8, 8, 18), strict=True)),
    *((SINGLE, {"solver_order": order, "lower_order_final": lower, **more}, n)
      for order in (1, 2, 3) for n in (6, 7, 8) for lower in (True, False)
      for more in (PLAIN, {**PLAIN, "final_sigmas_type": "sigma_min"}, COSINE)),
    *((SINGLE, {"algorithm_type": "dpmsolver", "solver_order": order, "lower_order_final": True, **PLAIN,
               "final_sigmas_type": "sigma_min"}, 8) for order in (2, 3)),
    (SINGLE, {"use_karras_sigmas": True, **PLAIN}, 7),
    *((LCM, more, n) for n in (1, 4, 8) for more in (
        {}, {"clip_sample": True, **COSINE}, {"original_inference_steps": 20}, {"timestep_scaling": 0.05},
        {**ZERO_SNR, "timestep_scaling": 0.01},
    )),
    *((FLOW_EULER, more, 7) for more in (
        {}, {"shift": 3.0}, {"shift": 0.5}, {"shift": 3.0, "shift_terminal": 0.1}, {"stochastic_sampling": True},
        {"use_karras_sigmas": True}, {"use_exponential_sigmas": True, "shift": 2.0}, {"use_beta_sigmas": True},
        {"num_train_timesteps": 500},
    )),
    *((FLOW_HEUN, {"shift": shift}, n) for shift in (1.0, 3.0) for n in (1, 6)),
    *((DPM, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift,
             "solver_order": order}, 8) for shift in (1.0, 3.0) for order in (1, 2, 3)),
    *((name, {"sigma_max": 20.0, **more}, 7) for name in (EDM_EULER, EDM_DPM) for more in (
        {}, {"sigma_schedule": "exponential"}, {"sigma_data": 1.0, "rho": 5.0}, {"prediction_type": "v_prediction"},
    )),
    (EDM_DPM, {"solver_order": 3, "lower_order_final": False, **THRESHOLD}, 9),
    *((name, {**ZERO_SNR, "timestep_spacing": "trailing", **more}, 8) for name, more in (
        ("DDIMScheduler", {"clip_sample": False}), ("DDPMScheduler", {"clip_sample": False}),
        ("EulerDiscreteScheduler", {}), ("EulerAncestralDiscreteScheduler", {}), (DPM, {}), (UNIPC, {}),
        ("EulerDiscreteScheduler", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
        (DPM, {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
    )),
    *((name, {**more, **THRESHOLD}, 8) for name, more in (
        ("DDIMScheduler", COSINE), ("DDPMScheduler", COSINE), (DPM, SCALED), (DPM, {"solver_order": 3, **SCALED}),
        (SINGLE, PLAIN), (UNIPC, SCALED), (DEIS, SCALED), (LCM, {}),
    )),
    *((name, {**TABLE, **more}, 8) for name, more in (
        ("DDIMScheduler", {"clip_sample": False}), ("EulerDiscreteScheduler", {}), (DPM, {}),
        ("HeunDiscreteScheduler", {}),
    )),
    *(("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large", **more}, 8)
      for more in ({}, {**SCALED, "steps_offset": 0})),
    *((PNDM, {"skip_prk_steps": skip, "set_alpha_to_one": one, "steps_offset": offset, **more}, n)
      for skip, counts in ((True, (1, 2, 3, 10, 20)), (False, (4, 10, 50))) for n in counts
      for one, offset, more in (
          (False, 1, PLAIN), (True, 0, PLAIN), (False, 1, {**PLAIN, "prediction_type": "v_prediction"}),
          (True, 1, COSINE),
      )),
    *((PNDM, {"skip_prk_steps": skip, "timestep_spacing": "trailing", **PLAIN}, 10) for skip in (True, False)),
    (PNDM, {"skip_prk_steps": True, "steps_offset": 0, **PLAIN}, 7),
    (PNDM, {"skip_prk_steps": True, "set_alpha_to_one": True, **TABLE}, 8),
    *(("DDPMScheduler", {"beta_schedule": "sigmoid", "clip_sample": False}, n) for n in (8, 20)),
]  # fmt: skip


def two_modes(x, sigma, spread=0.3):
    """The exact denoiser of pixels drawn near -1 or +1, in numpy: not linear in x."""
    variance = spread**2 + sigma**2
    return (spread**2 * x + sigma**2 * np.tanh(x / variance)) / variance


def ours(x, sigma):
    return mx.array(two_modes(np.array(x, dtype=np.float64), sigma).astype(np.float32))


def in_words(case):
    name, config, n = case
    return f"{name.removesuffix('Scheduler')}-{n}-" + ",".join(f"{k}={v}" for k, v in config.items())


def drawn_by_diffusers(monkeypatch, name, config, n, predict, noise, key=None):
    """The real scheduler's images; `predict(x in its own frame of unit variance, timestep, sigma)` is the network."""
    scheduler = getattr(diffusers, name).from_config(config)
    noises = iter(())
    if key is not None:
        keys = []
        for _ in range(n + 1):
            key, now = split(key)
            keys.append(np.array(normal(noise, now)).transpose(0, 3, 1, 2))
        noises = iter(keys)
    module = __import__(type(scheduler).__module__, fromlist=["x"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: torch.tensor(next(noises)))
    scheduler.set_timesteps(n)
    x = torch.tensor(np.array(noise).transpose(0, 3, 1, 2)) * getattr(scheduler, "init_noise_sigma", 1.0)
    flow = "FlowMatch" in name or config.get("use_flow_sigmas")
    if hasattr(scheduler, "alphas_cumprod"):
        kept = np.maximum(scheduler.alphas_cumprod.numpy().astype(np.float64), 1e-14)
        table = np.sqrt((1 - kept) / kept)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        if hasattr(scheduler, "sigmas"):
            if scheduler.step_index is None:
                scheduler._init_step_index(t)
            sigma = float(scheduler.sigmas[scheduler.step_index])
            sigma = min(sigma / max(1.0 - sigma, 1e-9), 1e7) if flow else sigma
        else:
            sigma = float(table[int(t)])
        output = predict(scaled.numpy().transpose(0, 2, 3, 1).astype(np.float64), float(t), sigma)
        output = torch.tensor(output.transpose(0, 3, 1, 2).astype(np.float32))
        x = scheduler.step(output, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def closed_form(name, config):
    """two_modes as a network that predicts what the class and the config say."""
    prediction_type = config.get("prediction_type", "epsilon")

    def flow(scaled, _, sigma):
        x = scaled * (1 + sigma)
        x0 = two_modes(x, sigma)
        return (x - x0) / sigma - x0

    def edm(scaled, _, sigma):
        data = config.get("sigma_data", 0.5)
        total = sigma**2 + data**2
        x = scaled * np.sqrt(total)
        sign = -1 if prediction_type == "v_prediction" else 1
        return sign * (two_modes(x, sigma) - data**2 / total * x) * np.sqrt(total) / (sigma * data)

    def predict(scaled, _, sigma):
        alpha = 1 / np.sqrt(1 + sigma**2)
        x = scaled / alpha
        x0 = two_modes(x, sigma)
        eps = (x - x0) / sigma
        return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * alpha * x0}[prediction_type]

    if name.startswith("EDM"):
        return edm
    return flow if "FlowMatch" in name or config.get("use_flow_sigmas") else predict


@pytest.mark.parametrize("case", CASES, ids=in_words)
def test_a_run_is_that_of_the_real_scheduler(case, monkeypatch):
    name, config, n = case
    noisy = name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler", LCM) or config.get("stochastic_sampling")
    noisy = noisy or "sde" in config.get("algorithm_type", "")
    predict = closed_form(name, config)
    theirs = drawn_by_diffusers(monkeypatch, name, config, n, predict, NOISE, KEY if noisy else None)
    plan = plan_from_config({"_class_name": name, **config}, n)
    got = np.array(plan.sample(ours, NOISE, KEY if noisy else None).images)
    np.testing.assert_allclose(got, theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EulerDiscreteScheduler", SCALED),
        ("HeunDiscreteScheduler", {**SCALED, "use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {**SCALED, "use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", COSINE),
        ("UniPCMultistepScheduler", {**SCALED, "use_exponential_sigmas": True}),
        ("DDIMScheduler", {**COSINE, "clip_sample": True}),
        (PNDM, {**SCALED, "skip_prk_steps": True}),
        (PNDM, {**COSINE, "set_alpha_to_one": True}),
    ],
)
def test_a_network_is_told_the_times_that_diffusers_tells_it(name, config, monkeypatch):
    model = Model(block_out_channels=(8, 8), attention_levels=(False, False), norm_num_groups=4)
    network = UNet2DModel(UNet2DConfig.build(model, 4, 1, 0, "silu"), mx.random.key(3))
    network.conv_out.weight = 0.1 * mx.random.normal(network.conv_out.weight.shape, key=mx.random.key(4))
    told = []

    def predict(scaled, t, _):
        told.append(t)
        return np.array(network(mx.array(scaled.astype(np.float32)), mx.full((3,), t), None))

    theirs = drawn_by_diffusers(monkeypatch, name, config, 6, predict, NOISE)
    plan = plan_from_config({"_class_name": name, **config}, 6)
    asked = []

    def listening(x, t, labels):
        asked.append(float(t[0]))
        return network(x, t, labels)

    got = plan.sample(network_denoiser(listening, plan.frame, times=plan.times), NOISE)
    np.testing.assert_allclose(asked, told, atol=2e-2 if any(v != round(v) for v in told) else 1e-6)
    np.testing.assert_allclose(np.array(got.images), theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))
    assert got.nfe == len(told)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddims_eta(eta, monkeypatch):
    config = {**COSINE, "clip_sample": False}
    real = diffusers.DDIMScheduler.step
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", lambda self, o, t, x: real(self, o, t, x, eta=eta))
    theirs = drawn_by_diffusers(monkeypatch, "DDIMScheduler", config, 10, closed_form("", config), NOISE, KEY)
    plan = plan_from_config({"_class_name": "DDIMScheduler", **config}, 10, eta=eta)
    np.testing.assert_allclose(np.array(plan.sample(ours, NOISE, KEY).images), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "LMSDiscreteScheduler"}, "class 'LMSDiscreteScheduler' is not supported; there are: DDIM"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "prediction_type='sample' of PNDMScheduler"),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 5000},
            "the first would",
        ),
        ({"_class_name": EDM_EULER, "sigma_min": None}, "sigma_min must be a number"),
        ({"_class_name": "PNDMScheduler", "timestep_spacing": "linspace"}, "leave diffusers' own grid"),
        ({"_class_name": "DDIMScheduler", "clip_sample": "false"}, "clip_sample must be true or false, got 'false'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "even"}, "timestep_spacing must be one of linspace"),
        ({"_class_name": "DDIMScheduler", "steps_offset": 1.5}, "steps_offset must be a whole number from 0 to 100000"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "1000"}, "num_train_timesteps must be a whole number"),
        ({"_class_name": DPM, "solver_order": 2.5}, "solver_order must be a whole number"),
        ({"_class_name": FLOW_EULER, "shift": 0}, "shift must be a number from 1e-06 to 1"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": 1}, "predict_x0=1"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type='learned'"),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "steps_offset": 1},
            "where the last timestep is 0",
        ),
        (
            {"_class_name": SINGLE, "algorithm_type": "sde-dpmsolver++"},
            "of DPMSolverSinglestepScheduler is not supported",
        ),
        ({"_class_name": LCM, "original_inference_steps": 5}, "n <= original_inference_steps <= 1000"),
        ({"_class_name": FLOW_EULER, "use_dynamic_shifting": True}, "needs mu"),
        ({"_class_name": FLOW_EULER, "invert_sigmas": True}, "invert_sigmas=True"),
        ({"_class_name": EDM_EULER, "final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'"),
        ({"_class_name": EDM_EULER, "sigma_min": 0}, "0 < sigma_min < sigma_max"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, "leave diffusers' own grid"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "solver_type='heun'"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "at 0 diffusers gives no numbers"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, **COSINE},
            "7 levels of this shape have only 5 whole timesteps",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas=True"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order must be 1, 2 or 3, got 4"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "needs final_sigmas_type='sigma_min'",
        ),
        ({"_class_name": "DEISMultistepScheduler", "use_karras_sigmas": True}, "with final_sigmas_type='zero' alone"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "only one of use_karras_sigmas",
        ),
        ({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
    ],
)
def test_what_is_not_followed_is_named(config, message):
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        plan_from_config(config, 7)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting_takes_the_resolutions_shift(kind, monkeypatch):
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    real = diffusers.FlowMatchEulerDiscreteScheduler.set_timesteps
    monkeypatch.setattr(
        diffusers.FlowMatchEulerDiscreteScheduler, "set_timesteps", lambda self, n: real(self, n, mu=0.8)
    )
    theirs = drawn_by_diffusers(monkeypatch, FLOW_EULER, config, 6, closed_form(FLOW_EULER, config), NOISE)
    plan = plan_from_config({"_class_name": FLOW_EULER, **config}, 6, mu=0.8)
    np.testing.assert_allclose(np.array(plan.sample(ours, NOISE).images), theirs, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pndms_middles_of_an_odd_stride_are_told_as_diffusers_tells_them(prediction_type, monkeypatch):
    """8 steps of 125: x is 62 timesteps down, and the network is told a timestep 62 up from the next one."""
    config = {**SCALED, "prediction_type": prediction_type}
    model = Model(block_out_channels=(8, 8), attention_levels=(False, False), norm_num_groups=4)
    network = UNet2DModel(UNet2DConfig.build(model, 4, 1, 0, "silu"), mx.random.key(3))
    network.conv_out.weight = 0.1 * mx.random.normal(network.conv_out.weight.shape, key=mx.random.key(4))
    told = []

    def predict(scaled, t, _):
        told.append(t)
        return np.array(network(mx.array(scaled.astype(np.float32)), mx.full((3,), t), None))

    theirs = drawn_by_diffusers(monkeypatch, PNDM, config, 8, predict, NOISE)
    plan = plan_from_config({"_class_name": PNDM, **config}, 8)
    asked = []

    def listening(x, t, labels):
        asked.append(float(t[0]))
        return network(x, t, labels)

    got = plan.sample(network_denoiser(listening, plan.frame, times=plan.times), NOISE)
    assert asked == told and len(set(np.diff(told))) > 1
    np.testing.assert_allclose(np.array(got.images), theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_of_a_class_is_followed_or_refused_and_no_other_is(name):
    """So a key that is passed over is one that diffusers' class does not have."""
    theirs = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    assert set(CLASSES[name].keys) == {one.name for one in theirs if one.name != "self"}
    own = {one.name: one.default for one in theirs if one.name in CLASSES[name].defaults}
    spacing = {"timestep_spacing": "leading"} if name == LCM else {}  # LCM has a grid of its own
    assert own == {key: CLASSES[name].defaults[key] for key in own} | spacing


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
      "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
      "clip_sample": False}  # fmt: skip
DDPM = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000,
        "trained_betas": None, "clip_sample": True}  # fmt: skip
SDXL = {**SD, "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
        "timestep_spacing": "leading", "use_karras_sigmas": False}  # fmt: skip
FLUX = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
        "num_train_timesteps": 1000}  # fmt: skip

PUBLISHED = {
    "stable-diffusion-v1-4": (PNDM, {key: value for key, value in SD.items() if key != "clip_sample"}, 50),
    "stable-diffusion-v1-5": (PNDM, SD, 50),
    "stable-diffusion-v1-5, 30 steps": (PNDM, SD, 30),
    "stable-diffusion-inpainting": ("DDIMScheduler", SD, 50),
    "stable-diffusion-2-base": (PNDM, {**SD, "prediction_type": "epsilon"}, 50),
    "stable-diffusion-2-1": ("DDIMScheduler", {**SD, "prediction_type": "v_prediction"}, 50),
    "stable-diffusion-2-1, DPM-Solver": (DPM, {**SD, "prediction_type": "v_prediction", "solver_order": 2}, 20),
    "stable-diffusion-2, Euler": ("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}, 25),
    "stable-diffusion-xl-base-1.0": ("EulerDiscreteScheduler", SDXL, 30),
    "stable-diffusion-xl-refiner-1.0": ("EulerDiscreteScheduler", SDXL, 20),
    "sdxl-turbo": ("EulerAncestralDiscreteScheduler",
                   {**SDXL, "timestep_spacing": "trailing", "sigma_max": None, "sigma_min": None}, 4),
    "sdxl-lightning": ("EulerDiscreteScheduler", {**SDXL, "timestep_spacing": "trailing"}, 4),
    "sd-turbo": ("EulerDiscreteScheduler",
                 {**SDXL, "timestep_spacing": "trailing", "sigma_max": None, "sigma_min": None,
                  "final_sigmas_type": "zero", "timestep_type": "discrete", "rescale_betas_zero_snr": False,
                  "use_exponential_sigmas": False, "use_beta_sigmas": False}, 4),
    "playground-v2": ("EulerAncestralDiscreteScheduler", SDXL, 20),
    "LCM_Dreamshaper_v7": (LCM, {**SD, "set_alpha_to_one": True, "original_inference_steps": 50, "thresholding": False,
                                 "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,
                                 "rescale_betas_zero_snr": False, "timestep_spacing": "leading",
                                 "prediction_type": "epsilon", "timestep_scaling": 10.0}, 4),
    "stable-diffusion-3-medium": (FLOW_EULER, {"num_train_timesteps": 1000, "shift": 3.0}, 28),
    "stable-diffusion-3.5-large": (FLOW_EULER, {**FLUX, "shift": 3.0, "use_dynamic_shifting": False,
                                                "base_image_seq_len": 256, "invert_sigmas": False,
                                                "shift_terminal": None, "use_beta_sigmas": False,
                                                "use_exponential_sigmas": False, "use_karras_sigmas": False}, 28),
    "FLUX.1-schnell": (FLOW_EULER, {**FLUX, "shift": 1.0, "use_dynamic_shifting": False}, 4),
    "PixArt-XL-2": (DPM, {"algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear",
                          "beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995, "euler_at_final": False,
                          "lambda_min_clipped": -np.inf, "lower_order_final": True, "num_train_timesteps": 1000,
                          "prediction_type": "epsilon", "sample_max_value": 1.0, "solver_order": 2,
                          "solver_type": "midpoint", "steps_offset": 0, "thresholding": False,
                          "timestep_spacing": "linspace", "trained_betas": None, "use_karras_sigmas": False,
                          "use_lu_lambdas": False, "variance_type": None}, 20),
    "DiT-XL-2-256": ("DDIMScheduler", {**DDPM, "clip_sample": False, "prediction_type": "epsilon",
                                       "set_alpha_to_one": True, "steps_offset": 0}, 25),
    "ddpm-cifar10-32": ("DDPMScheduler", {**DDPM, "variance_type": "fixed_large"}, 20),
    "ddpm-celebahq-256": ("DDPMScheduler", {**DDPM, "variance_type": "fixed_small", "timestep_values": None}, 20),
    "ddpm-celebahq-256, DDIM": ("DDIMScheduler", {**DDPM, "variance_type": "fixed_small", "timestep_values": None}, 20),
    "ddpm-ema-church-256": ("PNDMScheduler", {**DDPM, "timestep_values": None}, 50),
    "ldm-text2im-large-256": ("DDIMScheduler", {**DDPM, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                                                "beta_end": 0.012, "clip_sample": False, "timestep_values": None}, 50),
    "AuraFlow": (FLOW_EULER, {"num_train_timesteps": 1000, "shift": 1.73}, 20),
    "Lumina, Heun": (FLOW_HEUN, {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}, 10),
    "UniPC over SD 1.5's file": (UNIPC, SD, 20),
    "DEIS over SD 1.5's file": (DEIS, SD, 20),
    "Heun over SDXL's file": ("HeunDiscreteScheduler", SDXL, 10),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_file_is_followed_idle_keys_and_all(model, monkeypatch, caplog):
    name, config, n = PUBLISHED[model]
    noisy = name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler", LCM)
    theirs = drawn_by_diffusers(monkeypatch, name, config, n, closed_form(name, config), NOISE, KEY if noisy else None)
    with caplog.at_level("WARNING"):
        plan = plan_from_config({"_class_name": name, "_diffusers_version": "0.19.0", **config}, n)
    got = np.array(plan.sample(ours, NOISE, KEY if noisy else None).images)
    np.testing.assert_allclose(got, theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))
    idle = set(config) - set(inspect.signature(getattr(diffusers, name).__init__).parameters)
    assert set(plan.idle) == idle and (idle <= set(caplog.text.replace("'", " ").replace(",", " ").split()))


@pytest.mark.parametrize("name", CLASSES)
def test_a_config_that_diffusers_saves_is_read_whole(name, tmp_path):
    kept = {"final_sigmas_type": "zero"} if name == SINGLE else {}
    getattr(diffusers, name)(**kept).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    plan = plan_from_config(config, 8)
    assert len(plan.timesteps) == 8 and plan.sigmas[0] > plan.sigmas[-1]
