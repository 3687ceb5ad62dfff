"""Which built-in feature space sees the differences that matter: untrained convolutions or the learned denoiser?

    python benchmarks/feature_spaces.py [--seeds 3] [--steps 250]

For each dataset sets of known worth are scored against held-out images by the Frechet distance, as a multiple of what
real images score. The method of the learned space was chosen on digits; letters and textures had no part in that.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from record import save, spread

from mlx_tasks import hardware

hardware.prepare()

from metric_sanity import _digits  # noqa: E402

from mlx_tasks.domains.examples import draw  # noqa: E402
from mlx_tasks.metrics.extractors.self_supervised import (  # noqa: E402
    Encoder,
    FeatureConfig,
    SelfSupervisedFeatures,
    encoder_moments,
    fit_projection,
)
from mlx_tasks.metrics.frechet import frechet_distance  # noqa: E402
from mlx_tasks.metrics.random_conv import RandomConvFeatures  # noqa: E402
from mlx_tasks.metrics.references import blurred, class_gaussians, class_missing, noise, noisy  # noqa: E402
from mlx_tasks.metrics.self_supervised_training import train_features  # noqa: E402

COUNT = 256
Sets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(training images, their labels, held-out images, their labels)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250, help="training steps of the learned space")
    arguments = parser.parse_args()
    rows = []
    for name in ("digits", "letters", "textures"):
        found: dict[str, dict[str, list[float]]] = {}
        for seed in range(arguments.seeds):
            for space, values in measured(name, seed, arguments.steps).items():
                for set_name, times in values.items():
                    found.setdefault(space, {}).setdefault(set_name, []).append(times)
        for space, values in found.items():
            rows.append({"dataset": name, "space": space, **{key: spread(times) for key, times in values.items()}})
            print(
                f"{name:9} {space:16}", {key: round(np.median(times), 1) for key, times in values.items()}, flush=True
            )
    question = "Which built-in feature space sees the differences that matter?"
    print(save("feature_spaces", question=question, config=vars(arguments), rows=rows))


def measured(name: str, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """{space: {set: Frechet distance over that of real images}}."""
    train, labels, held, wanted = dataset(name, seed)
    channels, side = train.shape[-1], train.shape[1]
    encoder = Encoder(FeatureConfig(channels, side), seed)
    for _ in train_features(encoder, train.astype(np.float32) / 127.5 - 1, steps, 64, seed):
        pass
    learned = SelfSupervisedFeatures(encoder, *fit_projection(encoder_moments(encoder, train), 32))
    real = train[:COUNT]
    sets = {
        "grain 10 %": noisy(real, seed),
        "per-class Gaussian": class_gaussians(train, labels, wanted, seed),
        "blurred": blurred(real),
        "noise": noise(real.shape, seed),
    }
    if len(np.unique(wanted)) > 1:
        sets["class missing"] = class_missing(train, labels, wanted, seed)
    found = {}
    spaces: dict[str, Any] = {"random_conv": RandomConvFeatures(channels), "self_supervised": learned}
    for space_name, space in spaces.items():
        against = space(held)
        base = frechet_distance(space(real), against)
        found[space_name] = {key: frechet_distance(space(images), against) / base for key, images in sets.items()}
    return found


def dataset(name: str, seed: int) -> Sets:
    if name == "digits":
        return _digits(COUNT)
    rng = np.random.default_rng(seed)
    images = draw(name, "fit", 900 + COUNT, 16, rng).mean(axis=-1, keepdims=True).round().astype(np.uint8)
    labels = np.zeros(len(images), np.int64)
    return images[:900], labels[:900], images[900:], labels[900:]


if __name__ == "__main__":
    main()
