"""A small workspace as the evaluate stage leaves it: a dataset, bundles with fresh weights, and scores."""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_tasks.config import Config
from mlx_tasks.config_training import Model
from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.hardware import detect
from mlx_tasks.metrics.image_text import ImageTextConfig, ImageTextModel, save_image_text
from mlx_tasks.models.bundle import Sampler, bundle_digest, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.progress import Progress
from mlx_tasks.samplers import SOLVERS
from mlx_tasks.stages import register
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.mlflow_tracker import open_tracker

SIDE = 8
CLASSES = ("zero", "one", "two")
TIMESTEPS = [999, 640, 210]


def write_small_bundle(
    folder: Path, seed: int = 3, classes: tuple[str, ...] = CLASSES, steps: tuple[int, ...] = (999, 500)
) -> None:
    """A bundle of a small U-Net with fresh weights, whose last layer is not zero."""
    model = Model(block_out_channels=(8, 16), attention_head_dim=8, norm_num_groups=4)
    network = UNet2DModel(UNet2DConfig.build(model, SIDE, 1, len(classes), "relu"), mx.random.key(seed))
    network.conv_out.weight = 0.2 * mx.random.normal(network.conv_out.weight.shape, key=mx.random.key(seed + 1))
    null = len(classes) if classes else None
    sampler = Sampler("ddim", steps, 1.0, SOLVERS["ddim"].calls(len(steps)), SIDE, 1, classes, null)
    write_bundle(folder, network, NoiseSchedule.cosine(), sampler)


def make_workspace(
    root: Path, distance: float = 0.05, weights: int = 3, classes: tuple[str, ...] = CLASSES, pictures: int = 0
) -> Path:
    """The workspace; `distance` is the winner's Frechet distance, `pictures` the seed of the dataset's images."""
    import pandas as pd

    dataset = root / "work" / "dataset"
    (dataset / "images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(pictures)
    images = generator.integers(0, 256, (60, SIDE, SIDE, 1), dtype=np.uint8)
    np.save(dataset / "images" / f"{SIDE}.npy", images)
    labels = np.arange(60) % len(classes)
    split = ["train"] * 12 + ["test"] * 48
    manifest = {"index": np.arange(60), "class_index": labels, "caption": [classes[i] for i in labels], "split": split}
    manifest["pixels_sha256"] = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    pd.DataFrame(manifest).to_parquet(dataset / "manifest.parquet")
    (dataset / "classes.json").write_text(json.dumps(list(classes)))
    (dataset / "summary.json").write_text(
        json.dumps({"fingerprint": f"f1d{pictures}", "splits": {"train": 12, "test": 48}})
    )
    save_image_text(ImageTextModel(ImageTextConfig(1, max_bytes=8)), root / "work" / "image_text", {"trained": True})
    folder = "work/students/steps_2"
    write_small_bundle(root / folder, weights, classes)
    row = {
        "candidate": "student-steps2",
        "kind": "student",
        "solver": "dpmpp_2m",
        "grid": "tuned",
        "nfe": 3,
        "steps": 3,
        "timesteps": TIMESTEPS,
        "guidance_scale": 1.0,
        "bundle": folder,
        "bundle_digest": bundle_digest(root / folder),
        "refused": "",
        "latency_ms": 3.0,
        "size_mb": 0.1,
        "parameters": 900,
        "metrics": {
            "frechet_distance": {"value": distance, "low": distance * 0.9, "high": distance * 1.1},
            "recall": {"value": 0.6, "low": 0.5, "high": 0.7},
            "latency_ms": {"value": 3.0, "low": 2.9, "high": 3.2},
        },
    }
    references = [
        {
            "candidate": f"reference-{name}",
            "kind": "reference",
            "metrics": {key: {"value": value} for key, value in told},
        }
        for name, told in (
            ("real", (("frechet_distance", 0.017), ("recall", 0.9))),
            ("gaussian", (("frechet_distance", 0.15),)),
        )
    ]
    setup = {
        "samples": 40,
        "resolution": SIDE,
        "channels": 1,
        "classes": list(classes),
        "seed": 0,
        "noise_seed": 77,
        "resamples": 20,
        "confidence": 0.95,
        "dataset": f"f1d{pictures}",
        "feature_space": {"name": "random_conv", "seed": 0, "dimension": 64},
    }
    scores = {
        "rows": [*references, row],
        "winner": {"candidate": "student-steps2", "rule": "the fastest of the good"},
        "setup": setup,
    }
    (root / "work" / "scores").mkdir(exist_ok=True)
    (root / "work" / "scores" / "scores.json").write_text(json.dumps(scores))
    return root


@contextmanager
def stage_context(root: Path, config: Config):
    """The stage's surroundings, with the tracker that the environment asks for."""
    with open_tracker(root, "register", config) as tracker:
        progress = Progress("register", root / ".run" / "progress", echo=lambda *_, **__: None)
        yield StageContext("register", config, root, detect(), tracker, progress)


def run_register(root: Path, config: Config) -> dict:
    """Run the stage; its verdict."""
    with stage_context(root, config) as context:
        register.run(context)
    return read_verdict(root)


def read_verdict(root: Path) -> dict:
    """verdict.json."""
    return json.loads((root / "work" / "registered" / "verdict.json").read_text())
