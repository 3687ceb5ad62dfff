"""A small digits dataset and a workspace around it, as the validate stage leaves them: for training's tests."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from mlx_tasks import hardware
from mlx_tasks.data.loader import ImageSet
from mlx_tasks.params import parse_config, write_params
from mlx_tasks.progress import Progress
from mlx_tasks.stages.context import StageContext

TINY = {
    "model": {
        "block_out_channels": [8, 8],
        "attention_levels": [False, True],
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    },
    "train": {
        "resolutions": [4, 8],
        "steps": 24,
        "batch_size": 16,
        "warmup_steps": 3,
        "checkpoint_every": 4,
        "sample_every": 12,
    },
    "distill": {
        "start_steps": 4,
        "target_steps": 2,
        "updates": 6,
        "batch_size": 16,
        "gate_samples": 32,
        "checkpoint_every": 2,
    },
}


class Kept:
    """A tracker that keeps what it is told."""

    run_id = None

    def __init__(self):
        self.rows, self.images = [], {}

    def params(self, values):
        pass

    def tags(self, values):
        pass

    def metrics(self, values, step):
        self.rows.append((step, values))

    def image(self, name, pixels, step):
        self.images[name, step] = pixels

    def artifact(self, path, folder=""):
        pass


def digits(side=8, labelled=True) -> ImageSet:
    """256 digits, also halved to 4 x 4 by averaging."""
    bunch = load_digits()
    images = np.rint(bunch.images[:256] * 255 / 16)
    if side == 4:
        images = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
    labels = bunch.target[:256].astype(np.int32) if labelled else np.full(256, -1, np.int32)
    names = [str(i) for i in range(10)] if labelled else []
    return ImageSet(images.astype(np.uint8)[..., None], labels, [""] * 256, names)


def workspace(root: Path, labelled=True, **changes) -> Path:
    """A folder with params.yaml and work/dataset (192 train, 64 validation images)."""
    tree = {branch: {**TINY[branch], **changes.pop(branch, {})} for branch in TINY} | changes
    config = parse_config(tree)
    root.mkdir(parents=True, exist_ok=True)
    write_params(config, root / "params.yaml")
    dataset = root / "work" / "dataset"
    (dataset / "images").mkdir(parents=True)
    for side in config.train.resolutions:
        np.save(dataset / "images" / f"{side}.npy", digits(side).images)
    data = digits(8, labelled)
    split = ["train"] * 192 + ["validation"] * 64
    pd.DataFrame(
        {"index": range(256), "class_index": data.labels, "caption": data.captions, "split": split}
    ).to_parquet(dataset / "manifest.parquet")
    (dataset / "classes.json").write_text(json.dumps(data.class_names))
    (dataset / "summary.json").write_text(json.dumps({"fingerprint": "256-digits"}))
    return root


def context(root: Path, target: str) -> StageContext:
    """What a stage's process would hand to `run`, with a tracker that keeps its rows."""
    from mlx_tasks.params import load_config

    progress = Progress(target, root / ".run" / "progress", echo=lambda *args, **kwargs: None)
    return StageContext(target, load_config(root), root, hardware.detect(), Kept(), progress)
