"""What a validated dataset is, in one JSON value: summary.json, for the report, the model card and people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.config import Config
from mlx_tasks.data.arrays import ArrayRows
from mlx_tasks.data.expectations import Checked
from mlx_tasks.data.loader import SPLITS
from mlx_tasks.data.manifest import accepted_rows, count_by, fingerprint
from mlx_tasks.data.sources import Source

if TYPE_CHECKING:
    import pandas as pd


def build_summary(
    source: Source,
    frame: pd.DataFrame,
    names: list[str],
    channels: int,
    config: Config,
    moved: int,
    checks: list[Checked],
    images: ArrayRows,
) -> dict[str, Any]:
    """The summary.  frame: the manifest; moved: near duplicates that changed split; images: (N, R, R, C) uint8."""
    accepted = accepted_rows(frame)
    refused = frame.loc[frame["index"].to_numpy() < 0]
    splits = accepted["split"].to_numpy("S10")
    classes = accepted["class_index"].to_numpy()
    _, group_sizes = np.unique(accepted["duplicate_group"].to_numpy(), return_counts=True)
    shared = group_sizes[group_sizes > 1]
    captions = accepted["caption"].to_numpy() != ""
    shorter = accepted[["width", "height"]].to_numpy().min(axis=1)
    converted = (step for text in accepted["converted"] if text for step in text.split("; "))
    return {
        "name": source.name,
        "path": config.data.path,
        "facts": source.facts,
        "told": asdict(source.told),
        "fingerprint": fingerprint(frame),
        "seed": config.seed,
        "images": len(frame),
        "accepted": len(accepted),
        "refused": len(refused),
        "reasons": count_by(refused["reason"]),
        "splits": _by_split(splits),
        "classes": {name: _by_split(splits[classes == c]) for c, name in enumerate(names)},
        "labelled": bool(names),
        "captioned": bool(captions.any()),
        "empty_captions": int(np.count_nonzero(~captions)),
        "channels": channels,
        "resolutions": list(config.train.resolutions),
        "upscaled": {str(side): int(np.count_nonzero(shorter < side)) for side in config.train.resolutions},
        "modes": count_by(accepted["mode"]),
        "converted": count_by(converted),
        "bytes": int(accepted["bytes"].to_numpy().sum()),
        "shorter_side": _spread(shorter),
        "brightness": _spread(accepted["brightness"].to_numpy()),
        "sharpness": _spread(accepted["sharpness"].to_numpy()),
        "near_duplicates": {
            "distance": config.data.duplicate_distance,
            "groups": len(shared),
            "images": int(shared.sum()),
            "moved": moved,
        },
        "expectations": [{"name": c.name, "success": c.success, "observed": c.observed} for c in checks],
        "domain": _domain(images),
    }


def _by_split(splits: np.ndarray) -> dict[str, int]:
    return {split: int(np.count_nonzero(splits == split.encode())) for split in SPLITS}


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": float(values.max()),
    }


def _domain(images: ArrayRows) -> dict[str, Any]:
    """What kind of pictures these are, by the even sample of them that the detector takes too."""
    from mlx_tasks.domains.book import MAX_IMAGES, mean_statistics
    from mlx_tasks.domains.zero_shot import guess_domain

    pixels = images[np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int)]
    guess = guess_domain(pixels)
    statistics = [float(f"{value:.6g}") for value in mean_statistics(pixels)]
    return {"name": guess.name, "probability": float(guess.probability), "statistics": statistics}
