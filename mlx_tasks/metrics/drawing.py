"""How candidates are drawn: from noise that all of them share, to the held-out images' classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mlx.utils import tree_flatten

from mlx_tasks.data.loader import to_uint8
from mlx_tasks.hardware import Hardware
from mlx_tasks.metrics.candidates import Candidate
from mlx_tasks.metrics.held_out import HeldOut
from mlx_tasks.metrics.pictures import png_bytes, tile
from mlx_tasks.models.bundle import Bundle, read_bundle
from mlx_tasks.samplers.bundle_sampler import bundle_noise, denoising_strip, sample_bundle
from mlx_tasks.samplers.driver import Samples
from mlx_tasks.training.memory import micro_batch_limit

LARGEST_BATCH = {"cpu": 64, "cuda": 256, "metal": 256}
"""Images drawn together. On a CPU more of them fall out of its caches: 192 took a third longer an image than 64."""
STRIP_CLASSES = 6
STRIP_COLUMNS = 8


@dataclass
class Drawer:
    """Draws candidates, the same images wherever it does.

    Attributes:
        root: the workspace, to which bundle folders are relative.
        labels: (N,) the class of each image wanted; None where models are not told the class.
        noise_seed: of every candidate's noise: all start from the same.
        batch_size: images drawn together.
    """

    root: Path
    labels: np.ndarray | None
    noise_seed: int
    batch_size: int
    _bundles: dict[str, Bundle] = field(default_factory=dict)

    def bundle(self, folder: str) -> Bundle:
        """The bundle of a folder of the workspace, read once."""
        if folder not in self._bundles:
            self._bundles[folder] = read_bundle(self.root / folder)
        return self._bundles[folder]

    def draw(self, candidate: Candidate, indices: range, batch_size: int | None = None, seed: int = 0) -> Samples:
        """Images of the noises and labels with these indices, the labels taken again from the start past the last.

        seed: 0 for the noise that all candidates share, above for other noises that they share as well.
        """
        bundle = self.bundle(candidate.bundle)
        return sample_bundle(
            bundle,
            bundle_noise(bundle, (self.noise_seed + seed) % 2**32, indices),
            None if self.labels is None else self.labels[np.array(indices) % len(self.labels)],
            candidate.steps(bundle.schedule),
            candidate.solver,
            batch_size or self.batch_size,
            candidate.guidance_scale,
        )

    def strip(self, candidate: Candidate) -> bytes:
        """PNG of a candidate's x0 estimates on the way to an image, a row for each of the first classes."""
        first = list(range(STRIP_CLASSES))
        if self.labels is not None:
            first = [int(np.flatnonzero(self.labels == c)[0]) for c in np.unique(self.labels)[:STRIP_CLASSES]]
        bundle = self.bundle(candidate.bundle)
        strip = denoising_strip(
            bundle,
            bundle_noise(bundle, self.noise_seed, first),
            None if self.labels is None else self.labels[first],
            candidate.steps(bundle.schedule),
            candidate.solver,
            STRIP_COLUMNS,
            candidate.guidance_scale,
        )
        return png_bytes(tile(to_uint8(np.array(strip.images))))


def open_drawer(root: Path, held_out: HeldOut, seed: int, hardware: Hardware) -> Drawer:
    """The drawer of a workspace on this machine.  seed: the run's."""
    return Drawer(
        root,
        held_out.labels if held_out.conditional else None,
        noise_seed(seed),
        min(LARGEST_BATCH[hardware.kind], micro_batch_limit(hardware.max_micro_batch)),
    )


def noise_seed(seed: int) -> int:
    """The seed of every candidate's noise, 32 bits: of no other stage's."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/evaluate".encode(), digest_size=4).digest(), "big")


def parameter_count(bundle: Bundle) -> int:
    """Numbers in a bundle's network."""
    return sum(value.size for _, value in tree_flatten(bundle.model.parameters()))


def drawn_images(samples: Samples) -> np.ndarray:
    """What was drawn, as (N, H, W, C) uint8."""
    return to_uint8(np.array(samples.images))
