"""How fast, and in how much memory, does the validate stage's own work go: looking, grouping, splitting, writing?

    python benchmarks/manifest_speed.py [--sizes 2000 20000]

Photograph-like JPEGs of 128 x 96 pixels are generated, one in twenty a re-compressed copy of another. Each row is a
process of its own, so that its peak memory is its own (of decoding processes: the largest). Looking is timed in one
process and in as many as there are cores, up to four. Great Expectations (ten seconds at any size) is not in it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from record import ROOT, save

from mlx_tasks.data import inspection
from mlx_tasks.data.arrays import SquareStore
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.inspection import inspect_all
from mlx_tasks.data.manifest import build_manifest
from mlx_tasks.data.sources import read_source

RULES = Rules(min_side=8, max_pixels=50_000_000, max_aspect_ratio=3.0)
RESOLUTIONS = (16, 32)
FRACTIONS = {"test": 0.25, "validation": 0.1}


def generate(folder: Path, count: int) -> None:
    """`count` JPEGs in four class folders."""
    rng = np.random.default_rng(0)
    for label in range(4):
        (folder / f"class_{label}").mkdir(parents=True)
    for number in range(count):
        if number % 20 == 19:  # a copy of the one four before it, of the same class
            image, quality = Image.open(folder / f"class_{number % 4}" / f"{number - 4:06}.jpg"), 80
        else:
            clouds = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 24)]
            coarse, fine = (cloud.resize((128, 96), Image.Resampling.BICUBIC) for cloud in clouds)
            image = Image.blend(coarse, fine, 0.4)
            quality = 90
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        (folder / f"class_{number % 4}" / f"{number:06}.jpg").write_bytes(buffer.getvalue())


def peak_mb(whose: int = resource.RUSAGE_SELF) -> float:
    """Peak resident memory of this process, or of its largest ended child (MB)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(whose).ru_maxrss * unit / 1e6


def measure(folder: Path, workers: int) -> dict[str, float]:
    """Seconds of each part, and the peak memory."""
    clock = time.perf_counter
    inspection.FEWEST_FOR_PROCESSES = 0  # so that small sizes show what processes cost there
    start = clock()
    source = read_source(ROOT, str(folder), seed=0)
    listed = clock()
    count = len(source.candidates)
    with tempfile.TemporaryDirectory() as scratch, SquareStore(Path(scratch), count, RESOLUTIONS, 3) as store:
        inspected = []
        for row, seen in enumerate(inspect_all(source.candidates, RULES, RESOLUTIONS, "auto", workers)):
            store.put(row, seen.squares)
            seen.squares.clear()
            inspected.append(seen)
        looked = clock()
        frame, _, order = build_manifest(source, inspected, 12, FRACTIONS, 0)
        built = clock()
        store.write(Path(scratch) / "images", order, 3)
        frame.to_parquet(Path(scratch) / "manifest.parquet")
        written = clock()
    return {
        "images": count,
        "images_per_second": count / (looked - listed),
        "list_s": listed - start,
        "look_s": looked - listed,
        "group_and_split_s": built - looked,
        "write_s": written - built,
        "near_duplicates": int((frame["duplicate_group"].value_counts() > 1).sum()),
        "peak_mb": peak_mb(),
        "peak_mb_of_a_worker": peak_mb(resource.RUSAGE_CHILDREN),
    }


def main() -> None:
    """Generate, measure each arrangement in a process of its own, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, workers = arguments.child
        print(json.dumps(measure(Path(folder), int(workers))))
        return
    cores = min(4, os.cpu_count() or 1)
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder, "data"), size)
            for workers in (1, cores):
                command = [sys.executable, __file__, "--child", f"{folder}/data", str(workers)]
                load = os.getloadavg()[0]
                found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                rows.append({"workers": workers, "load_before": load, **found})
                print(rows[-1], flush=True)
    config = {"resolutions": RESOLUTIONS, "side": "128 x 96", "duplicate_distance": 12}
    print(
        save("manifest_speed", question="Images per second and memory of the validate stage", config=config, rows=rows)
    )


if __name__ == "__main__":
    main()
