"""Do five learned steps score as fifty of DDIM do?

    python benchmarks/few_steps_scores.py WORKSPACE [--bundle work/searched] [--nfe 5] [--seeds 3]

WORKSPACE: of a run, with its dataset. Each seed learns its steps anew (as `mlx-tasks optimize` does); both draw
from the same fresh noise, and are held against held-out images. Scores are among untrained random
convolutions; differences are paired, with 95 % bootstrap intervals over images, and the spread over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from record import hardware, save

hardware.prepare()

import numpy as np  # noqa: E402

from mlx_tasks.data.loader import load_split, to_uint8  # noqa: E402
from mlx_tasks.learned_steps.methods import Effort  # noqa: E402
from mlx_tasks.metrics.bootstrap import centred_bootstrap  # noqa: E402
from mlx_tasks.metrics.frechet import frechet_distance  # noqa: E402
from mlx_tasks.metrics.kid import kid  # noqa: E402
from mlx_tasks.metrics.random_conv import RandomConvFeatures  # noqa: E402
from mlx_tasks.metrics.references import held_out_rows  # noqa: E402
from mlx_tasks.metrics.significance import difference  # noqa: E402
from mlx_tasks.models.bundle import read_bundle  # noqa: E402
from mlx_tasks.optimizing.optimizer import Optimizer  # noqa: E402
from mlx_tasks.samplers.bundle_sampler import bundle_noise, own_steps, sample_bundle  # noqa: E402
from mlx_tasks.samplers.grids import uniform_grid  # noqa: E402


def main() -> None:
    """Learn, draw, score, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--bundle", default="work/searched")
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--many", type=int, default=50)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    bundle = read_bundle(given.workspace / given.bundle)
    test = load_split(given.workspace / "work" / "dataset", bundle.sampler.resolution, "test")
    space = RandomConvFeatures(bundle.sampler.channels)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        optimizer = Optimizer(bundle, Effort(48, 100, seed), tell=print)
        outcome = optimizer.at(given.nfe)
        chosen = held_out_rows(len(test), min(given.samples, len(test)), seed)
        real = space(np.asarray(test.images[chosen]))
        labels = test.labels[chosen] if bundle.sampler.class_names else None
        noise = bundle_noise(bundle, 4_000_000 + seed, range(len(chosen)))
        few = type(bundle)(bundle.model, bundle.schedule, optimizer.sampler(outcome))
        contestants = {
            f"{outcome.kept}-{given.nfe}": (few, own_steps(few), few.sampler.solver),
            f"ddim-{given.many}": (bundle, uniform_grid(bundle.schedule, given.many), "ddim"),
        }
        features = {}
        for name, (source, steps, solver) in contestants.items():
            images = to_uint8(np.array(sample_bundle(source, noise, labels, steps, solver).images))
            features[name] = space(images)
            distance = centred_bootstrap(frechet_distance, features[name], real, 200, 0.95, seed)
            kernel = kid(features[name], real, 0.95)
            row = {"frechet_distance": distance.as_dict(), "kernel_distance": kernel.as_dict()}
            rows.append({"seed": seed, "sampler": name, **row})
            print(rows[-1], flush=True)
        a, b = features.values()
        gap = difference(a, b, real, frechet_distance, seed=seed)
        rows.append({"seed": seed, "sampler": "difference", "frechet_distance": gap.as_dict()})
        print(rows[-1], flush=True)
    config = {**vars(given), "workspace": None, "bundle": bundle.digest}
    print(save("few_steps_scores", question="Do a few learned steps score as many of DDIM?", config=config, rows=rows))


if __name__ == "__main__":
    main()
