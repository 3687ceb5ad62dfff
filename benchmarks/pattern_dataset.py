"""A second dataset for the benchmarks, of another kind, in colour: procedural textures and abstracts in two folders.

    python benchmarks/pattern_dataset.py FOLDER [--count 1500] [--side 32]

What `schedules.py` was run on beside the digits: a teacher trained on it at 12 and 24 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import record  # noqa: F401 - puts this checkout's package first
from PIL import Image

from mlx_tasks.domains.examples import draw


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1500, help="images of each kind")
    parser.add_argument("--side", type=int, default=32)
    given = parser.parse_args()
    for seed, domain in enumerate(("textures", "abstracts")):
        folder = given.folder / domain
        folder.mkdir(parents=True, exist_ok=True)
        images = draw(domain, "fit", given.count, given.side, np.random.default_rng(seed))
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{index:05d}.png")
    print(f"{2 * given.count} images of {given.side} pixels in {given.folder}")


if __name__ == "__main__":
    main()
