"""A small workspace to be evaluated: real digits, real (untrained) bundles, real sampling; and its stages by name."""

import copy
import importlib

import mlx.core as mx
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from mlx_tasks import hardware
from mlx_tasks.catalog import STAGES, dvc_target
from mlx_tasks.config_training import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.files import read_json, write_json
from mlx_tasks.models.bundle import Sampler, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.params import parse_config
from mlx_tasks.progress import Progress
from mlx_tasks.samplers.grids import log_snr_grid, uniform_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.mlflow_tracker import open_tracker

NAMES = ["zero", "one", "two", "three"]
SCHEDULE = NoiseSchedule.cosine()
SETTINGS = {
    "slots": [0, 1],
    "samples": 64,
    "nfe": [1, 2, 4, 5],
    "bootstrap": 20,
    "feature_steps": 40,
    "image_text_steps": 60,
    "latency_batch": 4,
}


def write_dataset(folder):
    source = load_digits()
    keep = np.flatnonzero(source.target < 4)[:400]
    images = np.round(source.images[keep] / 16 * 255).astype(np.uint8)[..., None]
    labels = source.target[keep]
    splits = np.repeat(["train", "validation", "test"], [280, 40, 80])
    captions = [("a handwritten {}", "the digit {}")[i % 2].format(NAMES[c]) for i, c in enumerate(labels)]
    (folder / "images").mkdir(parents=True)
    np.save(folder / "images" / "8.npy", images)
    pd.DataFrame({"index": np.arange(400), "class_index": labels, "caption": captions, "split": splits}).to_parquet(
        folder / "manifest.parquet"
    )
    write_json(folder / "classes.json", NAMES)
    write_json(folder / "summary.json", {"fingerprint": "f00d", "channels": 1})


def write_small_bundle(folder, width, timesteps, guidance=1.0, solver="ddim", seed=0):
    model = Model(block_out_channels=(width, 2 * width), attention_head_dim=8, norm_num_groups=4)
    config = UNet2DConfig.build(model, 8, 1, len(NAMES), "relu")
    nfe = len(timesteps) * (1 if guidance == 1.0 else 2)
    sampler = Sampler(solver, timesteps, guidance, nfe, 8, 1, tuple(NAMES), len(NAMES))
    write_bundle(folder, UNet2DModel(config, mx.random.key(seed)), SCHEDULE, sampler)


def make_workspace(root):
    """All that the stages before the evaluation leave: dataset, bundles, the gate's table, schedules."""
    work = root / "work"
    write_dataset(work / "dataset")
    write_small_bundle(work / "teacher", 8, uniform_grid(SCHEDULE, 4).timesteps, guidance=1.5)
    for steps in (2, 1):
        folder = work / "students" / f"steps_{steps}"
        write_small_bundle(folder, 8, uniform_grid(SCHEDULE, steps).timesteps, seed=steps)
    table = [
        {"steps": 2, "accepted": True, "reason": ""},
        {"steps": 1, "accepted": False, "reason": "too far from the teacher"},
    ]
    write_json(work / "students" / "table.json", {"students": table})
    write_small_bundle(work / "searched", 4, uniform_grid(SCHEDULE, 4).timesteps, solver="dpmpp_2m", seed=5)
    rows = [
        {"budget": n, "grid": name, "solver": "dpmpp_2m", "timesteps": list(grid(SCHEDULE, n).timesteps)}
        for name, grid in (("uniform", uniform_grid), ("log_snr", log_snr_grid))
        for n in (2, 3)
    ]
    rows.append({**rows[-1], "grid": "tuned"})  # the search came back with the grid it started from
    rows.append({"budget": 3, "grid": "ppo", "solver": "dpmpp_2m", "timesteps": [900, 300]})  # one step saved
    learned = LearnedSteps((9.0, 2.0, 0.5, 0.0), (8.0, 2.5, 0.4), ((), (0.1,), (0.2, -0.05))).to_dict()
    rows.append({"budget": 3, "grid": "learned", "solver": "learned", "timesteps": [900, 600, 300], "learned": learned})
    write_json(work / "schedules" / "schedules.json", {"rows": rows})


def run_stage(root, stage, slot=None, **settings):
    """One stage as its process runs it; settings: of `evaluate`, over SETTINGS."""
    arguments = {} if slot is None else {"slot": slot}
    target = dvc_target(stage, **arguments)
    config = parse_config(
        {
            "train": {"resolutions": [8], "steps": 10},
            "model": {"block_out_channels": [8, 16], "norm_num_groups": 4},
            "evaluate": SETTINGS | settings,
        }
    )
    with open_tracker(root, target, config) as tracker:
        progress = Progress(target, root / ".run" / "progress", echo=lambda *a, **k: None)
        context = StageContext(target, config, root, hardware.detect(), tracker, progress)
        importlib.import_module(STAGES[stage].module).run(context, **arguments)


def evaluate(root, **settings):
    """All slots and the gathering; scores.json."""
    for slot in (SETTINGS | settings)["slots"]:
        run_stage(root, "score_share", slot, **settings)
    return gather(root, **settings)


def gather(root, **settings):
    """The gathering alone; scores.json."""
    run_stage(root, "evaluate", **settings)
    return read_json(root / "work" / "scores" / "scores.json")


def row_of(scores, name):
    return next(row for row in scores["rows"] if row["candidate"] == name)


def untimed(row):
    """A row without what the clock decides."""
    row = copy.deepcopy(row)
    for key in ("latency", "latency_ms", "seconds"):
        row.pop(key, None)
    for key in ("latency_ms", "images_per_second"):
        row["metrics"].pop(key, None)
    return row
