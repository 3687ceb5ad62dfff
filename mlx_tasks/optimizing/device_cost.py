"""What a step costs on this machine: a fixed part and a part a step, from timed runs of two lengths."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_tasks.errors import DataError
from mlx_tasks.samplers.bundle_sampler import bundle_noise, sample_bundle
from mlx_tasks.samplers.grids import uniform_grid

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

SHORT, LONG, REPEATS = 2, 8, 5


@dataclass(frozen=True)
class StepCost:
    """Milliseconds an image, in batches of `batch`: median of the repeats, and their lowest and highest.

    Attributes:
        batch: images drawn together.
        step_ms: one solver step, guidance's second evaluation included.
        step_low_ms, step_high_ms: of the repeats.
        fixed_ms: what a run costs beside its steps; not below 0.
        chip: what it was measured on.
    """

    batch: int
    step_ms: float
    step_low_ms: float
    step_high_ms: float
    fixed_ms: float
    chip: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def run_ms(self, steps: int) -> float:
        """Milliseconds an image of a run of so many steps."""
        return self.fixed_ms + steps * self.step_ms

    def steps_within(self, budget_ms: float) -> int:
        """Most steps that fit.  Raises: DataError where not even one does, with what one takes."""
        steps = int((budget_ms - self.fixed_ms) / self.step_ms)
        if steps < 1:
            raise DataError(
                f"a budget of {budget_ms:g} ms an image is less than one step takes: {self.run_ms(1):.3g} ms in "
                f"batches of {self.batch} on {self.chip}; raise it, or take a smaller network"
            )
        return steps


def measure_cost(bundle: Bundle, batch: int, chip: str) -> StepCost:
    """Time runs of two lengths in turn; the slope is a step, and what is left is fixed.

    Raises: ValueError for a batch below 1.
    """
    noise = bundle_noise(bundle, 0, batch)
    labels = [i % len(bundle.sampler.class_names) for i in range(batch)] if bundle.sampler.class_names else None
    taken: dict[int, list[float]] = {SHORT: [], LONG: []}
    for repeat in range(REPEATS + 1):
        for steps, seconds in taken.items():
            grid = uniform_grid(bundle.schedule, steps)
            started = time.perf_counter()
            mx.eval(sample_bundle(bundle, noise, labels, grid, "ddim", batch).images)
            if repeat:  # the first is warm-up
                seconds.append((time.perf_counter() - started) * 1000 / batch)
    slopes = [(long - short) / (LONG - SHORT) for short, long in zip(taken[SHORT], taken[LONG], strict=True)]
    step = max(statistics.median(slopes), 1e-9)
    fixed = max(0.0, statistics.median(taken[SHORT]) - SHORT * step)
    return StepCost(batch, step, min(slopes), max(slopes), fixed, chip)
