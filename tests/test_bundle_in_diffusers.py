"""Any bundle opens in diffusers and gives the same images there, to 1e-4, from the same noise."""

from pathlib import Path

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_tasks.config_training import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers.bundle_sampler import sample_bundle
from mlx_tasks.samplers.grids import karras_grid, log_snr_grid, uniform_grid
from mlx_tasks.samplers.solvers import SOLVERS

SCHEDULE = NoiseSchedule.cosine()
CLASSES, RESOLUTION, IMAGES = 3, 8, 4
LABELS = [0, 1, 2, 0]


def bundle_folder(
    folder: Path, solver: str, timesteps, guidance: float = 1.0, classes: int = CLASSES, **kwargs
) -> Path:
    """A bundle of an untrained network, whose predictions are as large as a trained one's."""
    widths = Model(block_out_channels=(16, 32), attention_head_dim=8, norm_num_groups=8)
    act_fn = kwargs.pop("act_fn", "relu")
    model = UNet2DModel(UNet2DConfig.build(widths, RESOLUTION, 1, classes, act_fn), mx.random.key(0))
    model.conv_out.weight = 3 * model.conv_out.weight
    sampler = Sampler(
        solver=solver,
        timesteps=timesteps,
        guidance_scale=guidance,
        nfe=SOLVERS[solver].calls(len(timesteps)) * (1 if guidance == 1 else 2),
        resolution=RESOLUTION,
        channels=1,
        class_names=[str(i) for i in range(classes)],
        null_label=classes or None,
    )
    write_bundle(folder, model, kwargs.pop("schedule", SCHEDULE), sampler)
    return folder


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((IMAGES, RESOLUTION, RESOLUTION, 1)).astype(np.float32)


def our_images(folder: Path, labels: list[int] | None) -> np.ndarray:
    return np.array(sample_bundle(read_bundle(folder), mx.array(noise()), labels).images)


@torch.no_grad()
def diffusers_images(folder: Path, labels: list[int] | None) -> np.ndarray:
    """The loop of diffusers' own pipelines, with guidance, over the two components that the index names."""
    index = diffusers.DiffusionPipeline.load_config(folder)
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler")
    unet = getattr(diffusers, index["unet"][1]).from_pretrained(folder, subfolder="unet")
    sampler = read_bundle(folder).sampler
    if isinstance(scheduler, diffusers.DDIMScheduler):
        scheduler.set_timesteps(len(sampler.timesteps))
    else:
        scheduler.set_timesteps(timesteps=list(sampler.timesteps))
    x = torch.tensor(noise().transpose(0, 3, 1, 2)) * scheduler.init_noise_sigma
    conditions = None if labels is None else torch.tensor(labels)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        output = unet(scaled, t, conditions).sample
        if sampler.guidance_scale != 1.0:
            empty = unet(scaled, t, torch.full_like(conditions, sampler.null_label)).sample
            output = empty + sampler.guidance_scale * (output - empty)
        x = scheduler.step(output, t, x).prev_sample
    return x.permute(0, 2, 3, 1).numpy()


CASES = {
    "teacher: guided, 20 uniform steps": ("ddim", uniform_grid(SCHEDULE, 20).timesteps, 1.5),
    "student: 8 steps": ("ddim", uniform_grid(SCHEDULE, 8).timesteps, 1.0),
    "student: 4 steps": ("ddim", uniform_grid(SCHEDULE, 4).timesteps, 1.0),
    "student: 1 step": ("ddim", uniform_grid(SCHEDULE, 1).timesteps, 1.0),
    "student: 16 steps, which do not divide 1000": ("ddim", uniform_grid(SCHEDULE, 16).timesteps, 1.0),
    "learned grid, first order": ("ddim", (987, 800, 611, 333, 21), 1.0),
    "learned grid, second order": ("dpmpp_2m", (987, 800, 611, 333, 21), 1.0),
    "second order from the top, guided": ("dpmpp_2m", uniform_grid(SCHEDULE, 10).timesteps, 2.0),
    "third order, guided": ("dpmpp_3m", log_snr_grid(SCHEDULE, 9).timesteps, 2.0),
    "third order, more than 15 steps": ("dpmpp_3m", log_snr_grid(SCHEDULE, 18).timesteps, 1.0),
    "second order, log-SNR": ("dpmpp_2m", log_snr_grid(SCHEDULE, 8).timesteps, 1.0),
    "second order, more than 15 steps": ("dpmpp_2m", log_snr_grid(SCHEDULE, 18).timesteps, 1.0),
    "one step of the second order": ("dpmpp_2m", (900,), 1.0),
    "Heun on Karras' grid, guided": ("heun", karras_grid(SCHEDULE, 6).timesteps, 1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_images_are_diffusers_images(name, tmp_path):
    folder = bundle_folder(tmp_path / "bundle", *CASES[name])
    expected = diffusers_images(folder, LABELS)
    assert expected.std() > 0.1
    np.testing.assert_allclose(our_images(folder, LABELS), expected, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("case", ["student: 8 steps", "learned grid, second order"])
def test_a_users_model_with_another_target_and_schedule(prediction_type, case, tmp_path):
    schedule = NoiseSchedule(beta_schedule="linear", prediction_type=prediction_type)
    folder = bundle_folder(tmp_path / "bundle", *CASES[case], schedule=schedule, act_fn="silu")
    expected = diffusers_images(folder, LABELS)
    np.testing.assert_allclose(our_images(folder, LABELS), expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("steps", [4, 10])
def test_the_whole_pipeline_of_an_unlabelled_bundle(steps, tmp_path):
    """DDIMPipeline takes no noise but a generator, so the noise is drawn here as it draws it."""
    folder = bundle_folder(tmp_path / "bundle", "ddim", uniform_grid(SCHEDULE, steps).timesteps, classes=0)
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=IMAGES, generator=torch.Generator().manual_seed(7), num_inference_steps=steps, output_type="np"
    ).images
    drawn = torch.randn((IMAGES, 1, RESOLUTION, RESOLUTION), generator=torch.Generator().manual_seed(7))
    ours = sample_bundle(read_bundle(folder), mx.array(drawn.permute(0, 2, 3, 1).numpy())).images
    np.testing.assert_allclose(np.clip(np.array(ours) / 2 + 0.5, 0, 1), theirs, atol=1e-4)
    assert theirs.std() > 0.05


def test_a_labelled_bundle_says_that_diffusers_has_no_pipeline_for_it(tmp_path):
    """Its components open (above); the index makes no promise that would fail half-way through a download."""
    folder = bundle_folder(tmp_path / "bundle", "ddim", uniform_grid(SCHEDULE, 4).timesteps)
    with pytest.raises(ValueError, match="DiffusionPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(folder)
