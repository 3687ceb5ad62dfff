"""Other datasets for the benchmarks: a folder for each kind of images, procedural textures and abstracts by default.

    python benchmarks/pattern_dataset.py FOLDER [--count 1500] [--side 32] [--kinds textures abstracts ...]

The default is what `schedules.py` was run on beside the digits: a teacher trained on it at 12 and 24 pixels, in colour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import record  # noqa: F401 - puts this checkout's package first
from PIL import Image

from mlx_tasks.domains.examples import DOMAINS, draw


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1500, help="images of each kind")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--kinds", nargs="+", default=["textures", "abstracts"], choices=list(DOMAINS))
    given = parser.parse_args()
    for seed, domain in enumerate(given.kinds):
        folder = given.folder / domain
        folder.mkdir(parents=True, exist_ok=True)
        images = draw(domain, "fit", given.count, given.side, np.random.default_rng(seed))
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:05d}.png")
    print(f"{len(given.kinds) * given.count} images of {given.side} pixels in {given.folder}")


if __name__ == "__main__":
    main()
