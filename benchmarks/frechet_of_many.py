"""What does the Frechet distance of 10,000 images of 32 pixels take, and what would a million?

    python benchmarks/frechet_of_many.py [--count 10000]

Images are smooth colour noise, made as they are read, so that no disk is measured. Each part is timed by itself:
features, running statistics, the distance. Peak memory is that of processes of their own at a tenth of the images and
at all of them: it must not grow. Inception takes random weights and a share of the images; its total is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, save

from mlx_tasks import hardware

BATCH = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--inception", type=int, default=200, help="images that Inception is timed on")
    parser.add_argument("--one", choices=["random_conv", "inception_v3_fid"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.count)))
        return
    rows = []
    for name, counts in (
        ("random_conv", (arguments.count // 10, arguments.count)),
        ("inception_v3_fid", (arguments.inception // 2, arguments.inception)),
    ):
        for count in counts:
            command = [sys.executable, __file__, "--one", name, "--count", str(count)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            per_image = (row["features_s"] + row["statistics_s"]) / count
            row["ten_thousand_s"] = 10_000 * per_image + row["distance_s"]
            row["a_million_h"] = (1e6 * per_image + row["distance_s"]) / 3600
            rows.append(row)
            print(row, flush=True)
    print(save("frechet_of_many", question="What does FID of 10,000 images take?", config=vars(arguments), rows=rows))


def measure(name: str, count: int) -> dict[str, Any]:
    """Seconds of each part, and the process's peak memory (MB)."""
    machine = hardware.prepare()
    from mlx_tasks.metrics.moments import Moments

    space = make(name)
    seconds = {"features_s": 0.0, "statistics_s": 0.0}
    sides = []
    for seed in (0, 1):
        moments = Moments(space.identity)
        for batch in pictures(count, seed):
            started = time.perf_counter()
            features = space(batch, 50)
            between = time.perf_counter()
            moments.update(features)
            seconds["features_s"] += (between - started) / 2
            seconds["statistics_s"] += (time.perf_counter() - between) / 2
        sides.append(moments)
    started = time.perf_counter()
    distance = sides[0].frechet_distance(sides[1])
    seconds["distance_s"] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
    told = {"extractor": name, "count": count, "dimension": space.dimension, "distance": distance}
    return {**told, **seconds, "peak_mb": peak, "threads": machine.threads}


def make(name: str) -> Any:
    if name == "random_conv":
        from mlx_tasks.metrics.random_conv import RandomConvFeatures

        return RandomConvFeatures(3)
    sys.path.insert(0, str(ROOT / "tests"))
    from safetensors.torch import save_file
    from torch_references import InceptionV3ForFid, randomise

    from mlx_tasks.metrics.extractors.inception import InceptionV3

    with tempfile.TemporaryDirectory() as folder:
        state = randomise(InceptionV3ForFid(), 0).state_dict()
        path = Path(folder) / "w.safetensors"
        save_file({k: v.contiguous() for k, v in state.items() if v.ndim}, path)
        return InceptionV3(path)


def pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    """(B, 32, 32, 3) uint8: 8 x 8 noise, each pixel repeated four times a side, with grain."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        coarse = generator.integers(0, 230, (n, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
        yield (coarse + generator.integers(0, 25, coarse.shape)).astype(np.uint8)


if __name__ == "__main__":
    main()
