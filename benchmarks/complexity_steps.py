"""Does a number for an image's complexity say how many steps it needs?

    python benchmarks/complexity_steps.py work/searched [--seeds 3]     # draws docs/pictures/complexity_steps.svg too

For each seed and noise: the evaluations at which searched grids (ends found for each number of steps) come within
`--tolerance` of the many-step result, log-linear between those measured, and the complexity of the image, both of the
finished one and of what the network believes after its second call of four. Complexity is the mean gradient (spatial
information), its detail (Laplacian) and the bytes of its PNG. Spearman's correlation, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from pictures import COLOURS, panels
from record import hardware, save

hardware.prepare()

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from mlx_tasks.data.loader import to_uint8  # noqa: E402
from mlx_tasks.learned_steps.methods import tuned_grids  # noqa: E402
from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.rl.problem import bundle_problem  # noqa: E402
from mlx_tasks.samplers import sample  # noqa: E402
from mlx_tasks.samplers.grids import Grid  # noqa: E402

STEPS = (3, 4, 5, 6, 8, 10)
RESAMPLES = 2000


def main() -> None:
    """Measure, correlate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noises", type=int, default=256)
    parser.add_argument("--tolerance", type=float, default=0.04)
    parser.add_argument("--name", default="complexity_steps")
    given = parser.parse_args()
    bundle, rows, points = read_bundle(given.bundle), [], {}
    for seed in range(given.seeds):
        found, points[seed] = one_seed(bundle, seed, given.noises, given.tolerance)
        rows += found
        for row in found:
            print(row, flush=True)
    config = {"bundle": bundle.digest, "noises": given.noises, "tolerance": given.tolerance, "steps": list(STEPS)}
    draw(given.name, points[0], given.tolerance)
    print(save(given.name, question="Does complexity say how many steps an image needs?", config=config, rows=rows))


def draw(name: str, points: dict[str, np.ndarray], tolerance: float) -> None:
    """Evaluations needed against complexity, an image a dot, of the first seed."""
    shown = {
        ("finished image", "png_bytes"): "bytes of the finished image's PNG",
        ("estimate after two calls", "gradient"): "mean gradient of the estimate after two calls",
    }
    needed = points["needed"]
    with panels(name, len(shown)) as axes:
        for axis, ((of, measure), label), colour in zip(axes, shown.items(), COLOURS, strict=False):
            values = points[f"{of} {measure}"]
            axis.plot(values, needed, "o", color=colour, markersize=3, alpha=0.6, markeredgewidth=0)
            axis.set_xlabel(label)
            axis.set_title(f"rank correlation {spearmanr(values, needed).statistic:+.2f}")
        axes[0].set_ylabel(f"evaluations for an error of {tolerance:g}")


def one_seed(
    bundle: Bundle, seed: int, noises: int, tolerance: float
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A row for each measure, of the finished image and of the early estimate; and what they come from, by image."""
    tuning = bundle_problem(bundle, "dpmpp_2m", seed, "tuning", 64, 32, 64)[0]
    test = bundle_problem(bundle, "dpmpp_2m", seed, "test", noises, noises, 64)[0]
    task, errors, early = test.tasks[0], [], None
    for n in STEPS:
        grid = min(tuned_grids(tuning, n, 48, seed).values(), key=lambda found: found.error).grid
        assert isinstance(grid, Grid)
        errors.append(test.errors(grid))
        if n == 4:
            seen: list[Any] = []
            sample(task.denoise, task.noise, grid, "dpmpp_2m", callback=lambda i, s, x, seen=seen: seen.append(x))
            early = to_uint8(np.array(seen[1]))
    logs = np.minimum.accumulate(np.log(np.stack(errors)), axis=0)
    needed = np.array([np.interp(-np.log(tolerance), -column, STEPS) for column in logs.T])
    rows, points = [], {"needed": needed}
    for of, images in (("finished image", to_uint8(task.truth)), ("estimate after two calls", early)):
        assert images is not None
        for name, values in complexity(images).items():
            points[f"{of} {name}"] = values
            rows.append({"seed": seed, "of": of, "measure": name, "mean_steps": float(needed.mean()),
                         "spread_steps": float(needed.std()), **correlation(values, needed, seed)})  # fmt: skip
    return rows, points


def complexity(images: np.ndarray) -> dict[str, np.ndarray]:
    """(N,) of each measure, of uint8 images (N, H, W, C).  Source: Yu & Winkler 2013 (spatial information)."""
    grey = images.astype(np.float64).mean(axis=-1) / 255.0
    across, down = np.diff(grey, axis=2)[:, 1:], np.diff(grey, axis=1)[:, :, 1:]
    around = grey[:, 2:, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 1:-1, 2:] + grey[:, 1:-1, :-2]
    return {
        "gradient": np.hypot(across, down).mean(axis=(1, 2)),
        "detail": np.abs(4 * grey[:, 1:-1, 1:-1] - around).mean(axis=(1, 2)),
        "png_bytes": np.array([len(png(image)) for image in images], dtype=np.float64),
    }


def png(image: np.ndarray) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def correlation(values: np.ndarray, needed: np.ndarray, seed: int) -> dict[str, float]:
    """Spearman's rho with a percentile bootstrap interval over images."""
    rng, count = np.random.default_rng(seed), len(values)
    drawn = [spearmanr(values[i], needed[i]).statistic for i in rng.integers(0, count, (RESAMPLES, count))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"spearman": float(spearmanr(values, needed).statistic), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
