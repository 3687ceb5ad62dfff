"""Do the scores put sets of known worth in the right order, and how steady are they?

    python benchmarks/metric_sanity.py

Digits at 16 pixels, 400 images a set against 400 held-out ones, in several feature spaces of different seeds.
"""

from __future__ import annotations

import argparse

import numpy as np
from record import hardware, save, spread

hardware.prepare()

from PIL import Image  # noqa: E402
from scipy.ndimage import gaussian_filter, map_coordinates  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from mlx_tasks.metrics.c2st import two_sample_test  # noqa: E402
from mlx_tasks.metrics.frechet import frechet_distance  # noqa: E402
from mlx_tasks.metrics.kid import kid  # noqa: E402
from mlx_tasks.metrics.precision_recall import precision_recall  # noqa: E402
from mlx_tasks.metrics.random_conv import RandomConvFeatures  # noqa: E402
from mlx_tasks.metrics.references import (  # noqa: E402
    blurred,
    class_gaussians,
    class_missing,
    matching_real,
    noise,
)


def main() -> None:
    """Measure every set in every space and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5, help="feature spaces")
    arguments = parser.parse_args()
    train, labels, test, wanted = _digits(arguments.samples)
    sets = _ladder(train, labels, wanted)
    spaces = [RandomConvFeatures(1, seed) for seed in range(arguments.seeds)]
    held_out = [space(test) for space in spaces]
    rows = []
    for name, images in sets.items():
        features = [space(images) for space in spaces]
        precision, recall = precision_recall(features[0], held_out[0])
        told = two_sample_test(images, test, features[0], held_out[0], seed=0)
        rows.append(
            {
                "set": name,
                "frechet_distance": spread([frechet_distance(f, h) for f, h in zip(features, held_out, strict=True)]),
                "kid": spread([kid(f, h).value for f, h in zip(features, held_out, strict=True)]),
                "precision": precision.value,
                "recall": recall.value,
                "c2st_accuracy": told.accuracy.value,
            }
        )
        row = rows[-1]
        times = row["frechet_distance"]["median"] / rows[0]["frechet_distance"]["median"]
        print(
            f"{name:16} Frechet {row['frechet_distance']['median']:8.4f} ({times:6.1f} x real)  kernel "
            f"{row['kernel_distance']['median']:8.4f}  precision {precision.value:.2f}  recall {recall.value:.2f}  "
            f"two-sample {told.accuracy.value:.2f}"
        )
    question = "Do the scores put sets of known worth in the right order?"
    print(save("metric_sanity", question=question, config=vars(arguments), rows=rows))


def _digits(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    source = load_digits()
    small = np.round(source.images / 16 * 255).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((16, 16), Image.Resampling.BICUBIC)) for x in small])
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order][..., None], source.target[order]
    return images[:1200], labels[:1200], images[1200 : 1200 + count], labels[1200 : 1200 + count]


def _ladder(train: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
    real = matching_real(train, labels, wanted, 0)
    rng = np.random.default_rng(1)
    grainy = np.clip(real + rng.normal(0, 13, real.shape), 0, 255).round().astype(np.uint8)
    return {
        "real": real,
        "class missing": class_missing(train, labels, wanted, 0),
        "grain, 5 %": grainy,
        "warped 1 px": _warped(real, 0.5, rng),
        "warped 2 px": _warped(real, 1.0, rng),
        "ten a class": matching_real(train[_first(labels, 10)], labels[_first(labels, 10)], wanted, 0),
        "gaussian": class_gaussians(train, labels, wanted, 0),
        "blurred 0.7 px": np.rint(gaussian_filter(real.astype(float), (0, 0.7, 0.7, 0))).astype(np.uint8),
        "blurred 1 px": blurred(real),
        "class means": np.stack([train[labels == c].mean(0).round().astype(np.uint8) for c in wanted]),
        "noise": noise(real.shape, 0),
    }


def _first(labels: np.ndarray, each: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == c)[:each] for c in np.unique(labels)])


def _warped(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Smoothly displaced by a random field of about 2 * strength pixels."""
    side = images.shape[1]
    grid = np.mgrid[:side, :side]
    fields = [gaussian_filter(rng.normal(size=(2, side, side)), (0, 3, 3)) * 8 * strength for _ in images]
    warped = [
        map_coordinates(x[..., 0].astype(float), grid + f, order=1, mode="nearest")
        for x, f in zip(images, fields, strict=True)
    ]
    return np.stack(warped)[..., None].round().astype(np.uint8)


if __name__ == "__main__":
    main()
