"""Runs after a diffusers scheduler_config.json, against the real schedulers: closed-form denoisers and a network."""

import json

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_tasks.config import Model
from mlx_tasks.errors import DataError
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import network_denoiser
from mlx_tasks.samplers.from_diffusers import plan_from_config
from mlx_tasks.samplers.noise import normal, split

NOISE = mx.random.normal((3, 4, 4, 1), key=mx.random.key(0))
KEY = mx.random.key(5)
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}

SPACINGS = ("linspace", "leading", "trailing")
SHAPES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
LOW_END = {**SCALED, "final_sigmas_type": "sigma_min"}
EULERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")
DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"

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
    x = torch.tensor(np.array(noise).transpose(0, 3, 1, 2)) * scheduler.init_noise_sigma
    table = np.sqrt((1 - scheduler.alphas_cumprod.numpy()) / scheduler.alphas_cumprod.numpy()).astype(np.float64)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        if hasattr(scheduler, "sigmas"):
            if scheduler.step_index is None:
                scheduler._init_step_index(t)
            sigma = float(scheduler.sigmas[scheduler.step_index])
        else:
            sigma = float(table[int(t)])
        output = predict(scaled.numpy().transpose(0, 2, 3, 1).astype(np.float64), float(t), sigma)
        output = torch.tensor(output.transpose(0, 3, 1, 2).astype(np.float32))
        x = scheduler.step(output, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def closed_form(prediction_type):
    """two_modes as a network that predicts what the config says."""

    def predict(scaled, _, sigma):
        alpha = 1 / np.sqrt(1 + sigma**2)
        x = scaled / alpha
        x0 = two_modes(x, sigma)
        eps = (x - x0) / sigma
        return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * alpha * x0}[prediction_type]

    return predict


@pytest.mark.parametrize("case", CASES, ids=in_words)
def test_a_run_is_that_of_the_real_scheduler(case, monkeypatch):
    name, config, n = case
    noisy = name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") or "sde" in config.get("algorithm_type", "")
    predict = closed_form(config.get("prediction_type", "epsilon"))
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

    got = plan.sample(network_denoiser(listening, plan.schedule, times=plan.times), NOISE)
    np.testing.assert_allclose(asked, told, atol=2e-2 if any(v != round(v) for v in told) else 1e-6)
    np.testing.assert_allclose(np.array(got.images), theirs, atol=1e-4 * max(1.0, np.abs(theirs).max()))
    assert got.nfe == len(told)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddims_eta(eta, monkeypatch):
    config = {**COSINE, "clip_sample": False}
    real = diffusers.DDIMScheduler.step
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", lambda self, o, t, x: real(self, o, t, x, eta=eta))
    theirs = drawn_by_diffusers(monkeypatch, "DDIMScheduler", config, 10, closed_form("v_prediction"), NOISE, KEY)
    plan = plan_from_config({"_class_name": "DDIMScheduler", **config}, 10, eta=eta)
    np.testing.assert_allclose(np.array(plan.sample(ours, NOISE, KEY).images), theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "scheduler class 'PNDMScheduler' is not supported; there are: DDIM"),
        ({"_class_name": "EulerDiscreteScheduler", "rho": 7}, "key 'rho' of EulerDiscreteScheduler is not supported"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding=True of DDIMScheduler is not supported"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
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
        ({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
    ],
)
def test_what_is_not_followed_is_named(config, message):
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        plan_from_config(config, 7)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_config_that_diffusers_saves_is_read_whole(name, tmp_path):
    getattr(diffusers, name)(clip_sample=False).save_pretrained(tmp_path) if name == "DDIMScheduler" else getattr(
        diffusers, name
    )().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert plan_from_config(config, 8).sigmas[0] > plan_from_config(config, 8).sigmas[-1]
