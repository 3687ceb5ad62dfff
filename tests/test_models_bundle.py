"""Bundles: what comes back is what went, parts that do not fit are refused, and diffusers finds what it needs."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.config_training import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.scheduler_config import ddim_timesteps, scheduler_config
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers import LearnedSteps, network_denoiser, sample, sample_bundle
from mlx_tasks.samplers.grids import uniform_grid

SCHEDULE = NoiseSchedule.cosine()
SMALL = Model(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4)


def network(classes: int = 3, resolution: int = 8) -> UNet2DModel:
    return UNet2DModel(UNet2DConfig.build(SMALL, resolution, 1, classes, "relu"), mx.random.key(2))


def sampler(**changes) -> Sampler:
    values = {
        "solver": "ddim",
        "timesteps": (999, 749, 499, 249),
        "guidance_scale": 1.5,
        "nfe": 8,
        "resolution": 8,
        "channels": 1,
        "class_names": ("0", "één", "二"),
        "null_label": 3,
    }
    return Sampler(**{**values, **changes})


def test_what_is_read_is_what_was_written(tmp_path):
    model, lineage = network(), {"commit": "abc", "scores": {"kid": 0.5}}
    write_bundle(tmp_path / "b", model, SCHEDULE, sampler(), lineage)
    bundle = read_bundle(tmp_path / "b")
    assert (bundle.schedule, bundle.sampler, bundle.lineage) == (SCHEDULE, sampler(), lineage)
    x, t, labels = mx.random.normal((2, 8, 8, 1), key=mx.random.key(0)), mx.array([3, 999]), mx.array([0, 3])
    np.testing.assert_array_equal(np.array(bundle.model(x, t, labels)), np.array(model(x, t, labels)))


def test_the_folder_holds_what_the_contract_names(tmp_path):
    write_bundle(tmp_path / "b", network(), SCHEDULE, sampler())
    found = sorted(p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert found == [
        "digests.json",
        "model_index.json",
        "sampler.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_the_sampler_decides_the_size_diffusers_draws(tmp_path):
    """A network trained on a ladder of sizes is written for the one it is sampled at."""
    write_bundle(tmp_path / "b", network(resolution=8), SCHEDULE, sampler(resolution=16))
    assert json.loads((tmp_path / "b" / "unet" / "config.json").read_text())["sample_size"] == 16


def test_the_digest_is_that_of_what_makes_the_images(tmp_path):
    write_bundle(tmp_path / "a", network(), SCHEDULE, sampler(), {"run": 1})
    write_bundle(tmp_path / "b", network(), SCHEDULE, sampler(), {"run": 2})
    write_bundle(tmp_path / "c", network(), SCHEDULE, sampler(timesteps=(999, 749, 499, 248)))
    a, b, c = (read_bundle(tmp_path / name).digest for name in "abc")
    assert a == b != c
    assert len(a) == 64


@pytest.mark.parametrize("file", ["sampler.json", "scheduler/scheduler_config.json", "unet/config.json"])
def test_a_changed_or_missing_file_is_refused(tmp_path, file):
    write_bundle(tmp_path / "b", network(), SCHEDULE, sampler())
    path = tmp_path / "b" / file
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match=file):
        read_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(DataError, match=file):
        read_bundle(tmp_path / "b")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no bundle: it has no digests\.json"):
        read_bundle(tmp_path)
    with pytest.raises(DataError, match="is no bundle: there is no such folder"):
        read_bundle(tmp_path / "nothing")


def test_a_refused_bundle_leaves_the_old_one(tmp_path):
    write_bundle(tmp_path / "b", network(), SCHEDULE, sampler())
    broken = network()
    broken.conv_out.bias = mx.array([float("nan")])
    with pytest.raises(DataError, match="finite"):
        write_bundle(tmp_path / "b", broken, SCHEDULE, sampler(guidance_scale=1.0, nfe=4))
    assert read_bundle(tmp_path / "b").sampler == sampler()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"solver": "euler"}, "solver"),
        ({"timesteps": ()}, "timesteps"),
        ({"timesteps": (999, 999, 499, 249)}, "timesteps"),
        ({"timesteps": (999, 749, 499, -1)}, "timesteps"),
        ({"timesteps": (999.5, 749, 499, 249)}, "timesteps"),
        ({"nfe": 4}, "nfe must be 8"),
        ({"solver": "heun"}, "nfe must be 14"),
        ({"guidance_scale": 1.0}, "nfe must be 4"),
        ({"guidance_scale": 0.0}, "nfe must be 4"),
    ],
)
def test_a_sampler_that_contradicts_itself_is_refused(changes, rule):
    with pytest.raises(DataError, match=rule):
        sampler(**changes)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"resolution": 9}, "sample_size|resolution"),
        ({"channels": 3}, "channels"),
        ({"timesteps": (1000, 749, 499, 249)}, "timesteps must be below 1000"),
        ({"class_names": tuple("abcde")}, "4 labels"),
        ({"null_label": 4}, "null_label"),
        ({"null_label": 1}, "null_label must be no class' label, 1 is that of"),
        ({"null_label": None}, "null_label"),
    ],
)
def test_a_sampler_that_does_not_fit_the_network_is_refused(tmp_path, changes, rule):
    with pytest.raises(DataError, match=rule):
        write_bundle(tmp_path / "b", network(), SCHEDULE, sampler(**changes))
    assert not (tmp_path / "b").exists()


def test_sampler_json_holds_exactly_its_keys():
    values = sampler().to_dict()
    assert Sampler.from_dict(json.loads(json.dumps(values))) == sampler()
    with pytest.raises(DataError, match="eta"):
        Sampler.from_dict({**values, "eta": 0.0})
    with pytest.raises(DataError, match="nfe"):
        Sampler.from_dict({key: value for key, value in values.items() if key != "nfe"})


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 20, 100])
def test_where_n_divides_t_the_uniform_grid_is_diffusers_ddim(n):
    grid = uniform_grid(SCHEDULE, n).timesteps
    assert ddim_timesteps(SCHEDULE, n) == grid
    chosen = scheduler_config(SCHEDULE, sampler(timesteps=grid, nfe=2 * n))
    assert chosen["_class_name"] == "DDIMScheduler" and chosen["timestep_spacing"] == "trailing"
    assert chosen["clip_sample"] is False and chosen["set_alpha_to_one"] is True


@pytest.mark.parametrize(
    ("solver", "timesteps", "name", "order"),
    [
        ("ddim", uniform_grid(SCHEDULE, 16).timesteps, "DPMSolverMultistepScheduler", 1),
        ("ddim", (999, 400, 3), "DPMSolverMultistepScheduler", 1),
        ("dpmpp_2m", uniform_grid(SCHEDULE, 8).timesteps, "DPMSolverMultistepScheduler", 2),
        ("heun", (900, 400, 3), "HeunDiscreteScheduler", None),
    ],
)
def test_other_samplers_get_the_scheduler_that_takes_their_timesteps(solver, timesteps, name, order):
    calls = 2 * len(timesteps) - 1 if solver == "heun" else len(timesteps)
    chosen = scheduler_config(SCHEDULE, sampler(solver=solver, timesteps=timesteps, nfe=2 * calls))
    assert (chosen["_class_name"], chosen.get("solver_order")) == (name, order)


@pytest.mark.parametrize(
    ("classes", "timesteps", "pipeline"),
    [
        (0, (999, 749, 499, 249), "DDIMPipeline"),
        (0, (999, 700, 499, 249), "DiffusionPipeline"),
        (3, (999, 749, 499, 249), "DiffusionPipeline"),
    ],
)
def test_the_index_names_a_pipeline_only_where_diffusers_has_one(tmp_path, classes, timesteps, pipeline):
    plain = sampler(guidance_scale=1.0, nfe=4)
    unlabelled = {} if classes else {"class_names": (), "null_label": None}
    write_bundle(tmp_path / "b", network(classes), SCHEDULE, replace(plain, timesteps=timesteps, **unlabelled))
    index = json.loads((tmp_path / "b" / "model_index.json").read_text())
    assert index["_class_name"] == pipeline
    assert index["unet"] == ["diffusers", "UNet2DModel"]


LEARNED = LearnedSteps((9.0, 2.0, 0.5, 0.0), (8.0, 2.5, 0.4), ((), (0.1,), (0.2, -0.05)))


def test_learned_steps_travel_and_diffusers_is_given_the_nearest_whole_ones(tmp_path):
    changes = {"solver": "learned", "timesteps": (930, 700, 290), "nfe": 3, "guidance_scale": 1.0, "learned": LEARNED}
    model = network()
    write_bundle(tmp_path / "b", model, SCHEDULE, sampler(**changes))
    bundle = read_bundle(tmp_path / "b")
    assert bundle.sampler == sampler(**changes)
    noise = mx.random.normal((2, 8, 8, 1), key=mx.random.key(1))
    drawn = sample_bundle(bundle, noise, [0, 2]).images
    by_hand = sample(network_denoiser(model, SCHEDULE, mx.array([0, 2])), noise, LEARNED).images
    assert mx.allclose(drawn, by_hand, atol=1e-5)
    told = json.loads((tmp_path / "b" / "scheduler" / "scheduler_config.json").read_text())
    assert (told["_class_name"], told["solver_order"]) == ("DPMSolverMultistepScheduler", 2)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"solver": "learned", "timesteps": (9, 5, 2), "nfe": 6}, "goes with the solver 'learned'"),
        ({"learned": LEARNED}, "goes with the solver 'learned' and with no other, got 'ddim'"),
        ({"solver": "learned", "learned": LEARNED}, "has 3 steps, timesteps 4"),
    ],
)
def test_learned_steps_that_contradict_the_sampler_are_refused(changes, rule):
    with pytest.raises(DataError, match=rule):
        sampler(**changes)


def test_a_sampler_from_before_there_were_learned_steps_is_read():
    values = sampler().to_dict()
    del values["learned"]
    assert Sampler.from_dict(values) == sampler()
