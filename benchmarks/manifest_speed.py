"""How fast, and in how much memory, does validate go: looking, grouping, splitting, writing, and the whole stage?

    python benchmarks/manifest_speed.py [--sizes 2000 20000 200000] [--side 32] [--workers 4] [--looks 100000 1000000]

Photograph-like JPEGs, square, are generated, one in twenty a re-compressed copy of another. Each row is a process of
its own, so that its peak memory is its own (of decoding processes: the largest). `parts` is the stage's own work by
part; `stage` is `mlx-tasks validate` as it is, with Great Expectations, the summary and the records, and its peak is
what the machine must have. `looks` is grouping alone, of made looks: photographs' spectra, contrast from flat to harsh,
one in twenty a copy, and a thousand of one image.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from record import ROOT, save

from mlx_tasks.data import inspection
from mlx_tasks.data.arrays import SquareStore
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.duplicates import duplicate_groups
from mlx_tasks.data.inspection import inspect_all
from mlx_tasks.data.manifest import build_manifest
from mlx_tasks.data.measures import Looks
from mlx_tasks.data.records import Records
from mlx_tasks.data.sources import read_source

RULES = Rules(min_side=8, max_pixels=50_000_000, max_aspect_ratio=3.0)
RESOLUTIONS = (16, 32)
FRACTIONS = {"test": 0.25, "validation": 0.1}
CLASSES = 4
ALIKE = 1000
_RANGE = 1000


def generate(folder: Path, count: int, side: int) -> None:
    """`count` JPEGs in four class folders, made by as many processes as there are cores."""
    for label in range(CLASSES):
        (folder / f"class_{label}").mkdir(parents=True)
    begins = range(0, count, _RANGE)
    ends = [min(begin + _RANGE, count) for begin in begins]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_generate, [folder] * len(ends), begins, ends, [side] * len(ends)))


def _generate(folder: Path, begin: int, end: int, side: int) -> None:
    rng = np.random.default_rng([0, begin])
    for number in range(begin, end):
        place = folder / f"class_{number % CLASSES}"
        if number % 20 == 19:  # a copy of the last before it of the same class
            image, quality = Image.open(place / f"{number - CLASSES:07}.jpg"), 80
        else:
            clouds = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 24)]
            coarse, fine = (cloud.resize((side, side), Image.Resampling.BICUBIC) for cloud in clouds)
            image, quality = Image.blend(coarse, fine, 0.4), 90
        image.save(place / f"{number:07}.jpg", "JPEG", quality=quality)


def peak_mb(whose: int = resource.RUSAGE_SELF) -> float:
    """Peak resident memory of this process, or of its largest ended child (MB)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(whose).ru_maxrss * unit / 1e6


def measure_parts(folder: Path, workers: int) -> dict[str, float]:
    """Seconds of each part, and the peak memory."""
    clock = time.perf_counter
    inspection.FEWEST_FOR_PROCESSES = 0  # so that small sizes show what processes cost there
    start = clock()
    source = read_source(ROOT, str(folder), seed=0)
    listed = clock()
    count = len(source.candidates)
    with tempfile.TemporaryDirectory() as scratch, SquareStore(Path(scratch), count, RESOLUTIONS, 3) as store:
        records = Records(count)
        for row, seen in enumerate(inspect_all(source.candidates, RULES, RESOLUTIONS, "auto", workers)):
            store.put(row, seen.squares)
            records.append(seen)
        looked = clock()
        frame, _, order = build_manifest(source, records, 12, FRACTIONS, 0)
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


def measure_stage(folder: Path, workers: int) -> dict[str, float]:
    """Seconds and peak memory of `mlx-tasks validate` in a workspace of its own."""
    from mlx_tasks.config import Config
    from mlx_tasks.params import parse_config, write_params

    os.environ["MLX_TASKS_THREADS"] = str(workers)
    tree = Config().dump()
    tree["data"]["path"] = str(folder)
    tree["train"]["resolutions"] = list(RESOLUTIONS)
    with tempfile.TemporaryDirectory() as workspace:
        write_params(parse_config(tree), Path(workspace, "params.yaml"))
        Path(workspace, "include").symlink_to(ROOT / "include")
        start = time.perf_counter()
        command = [sys.executable, "-m", "mlx_tasks.cli", "validate", "--root", workspace]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        metrics = json.loads(Path(workspace, "work", "metrics", "validate.json").read_text())
    seconds = time.perf_counter() - start
    count = metrics["images"]
    return {
        "images": count,
        "stage_s": seconds,
        "images_per_second": count / seconds,
        "peak_mb": peak_mb(resource.RUSAGE_CHILDREN),
    }


def made_looks(count: int) -> Looks:
    """Looks of photographs that never were: DCT coefficients of amplitude 1/frequency and log-normal contrast."""
    rng, frequency = np.random.default_rng(0), np.arange(16)
    amplitude = 1 / np.maximum(1, np.hypot(frequency[:, None], frequency[None, :]))
    amplitude[0, 0] = 0
    looks = Looks.empty(count)
    for begin in range(0, count, 50_000):
        block = min(50_000, count - begin)
        c = rng.standard_normal((block, 16, 16)) * amplitude * np.exp(rng.normal(5.0, 0.8, (block, 1, 1)))
        copies = block // 20
        c[block - copies :] = c[:copies] + rng.normal(0, 1, (copies, 16, 16)) * (amplitude > 0)
        if begin == 0:
            c[copies : copies + ALIKE] = c[copies] + rng.normal(0, 1, (ALIKE, 16, 16)) * (amplitude > 0)
        strong = c > np.maximum(4, np.median(c.reshape(block, -1)[:, 1:], axis=1))[:, None, None]
        shape = c[:, :8, :8].reshape(block, -1)[:, 1:]
        rows = slice(begin, begin + block)
        looks.bits[rows] = np.packbits(strong.reshape(block, -1), axis=1)
        looks.shapes[rows] = shape / np.linalg.norm(shape, axis=1, keepdims=True)
        looks.known[rows] = strong.any((1, 2)) & (np.linalg.norm(shape, axis=1) >= 4)
    return looks


def measure_looks(count: int) -> dict[str, float]:
    """Seconds of grouping alone, and what it added to the peak memory."""
    looks = made_looks(count)
    before, start = peak_mb(), time.perf_counter()
    groups = duplicate_groups(np.arange(count), looks, 12)
    seconds = time.perf_counter() - start
    return {"images": count, "group_s": seconds, "groups": int(groups.max()) + 1, "added_peak_mb": peak_mb() - before}


def child(*arguments: str) -> dict[str, float]:
    """One measurement in a process of its own, and the machine's load before it."""
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--child", *arguments]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    row = {"what": arguments[0], "load_before": load, **found}
    print(row, flush=True)
    return row


def main() -> None:
    """Generate, measure each arrangement in a process of its own, save."""
    cores = min(4, os.cpu_count() or 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, cores])
    parser.add_argument("--looks", type=int, nargs="*", default=[20000, 100000, 1000000])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, *values = arguments.child
        if what == "looks":
            found = measure_looks(int(values[0]))
        else:
            found = {"parts": measure_parts, "stage": measure_stage}[what](Path(values[0]), int(values[1]))
        print(json.dumps(found))
        return
    rows = [child("looks", str(count)) for count in arguments.looks]
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder, "data"), size, arguments.side)
            for workers in arguments.workers:
                rows.append({"workers": workers, **child("parts", f"{folder}/data", str(workers))})
            most = max(arguments.workers)
            rows.append({"workers": most, **child("stage", f"{folder}/data", str(most))})
    config = {"resolutions": RESOLUTIONS, "side": arguments.side, "duplicate_distance": 12}
    print(
        save("manifest_speed", question="Images per second and memory of the validate stage", config=config, rows=rows)
    )


if __name__ == "__main__":
    main()
