"""A bundle in Python, in the words that readers of diffusers know.

from mlx_tasks import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("bundle").optimize(nfe=6)
images = pipe(class_labels=[3, 1, 4], seed=0).images
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks import hardware
from mlx_tasks.data.loader import to_uint8
from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.errors import DataError
from mlx_tasks.models.bundle import Bundle, read_bundle, write_bundle
from mlx_tasks.optimizing.adaptive import AdaptiveScheduler
from mlx_tasks.samplers.bundle_sampler import bundle_noise, check_labels, own_steps, sample_bundle
from mlx_tasks.samplers.denoiser import NetworkDenoiser, network_denoiser
from mlx_tasks.samplers.driver import Callback
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps, make_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.noise import split
from mlx_tasks.samplers.solvers import find_solver

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class PipelineOutput:
    """What a call gives.

    Attributes:
        images: (N, H, W, C) uint8.
        nfe: network evaluations an image cost; the mean where every image took its own.
        nfe_each: (N,) those of every image, or None where all took the same.
    """

    images: np.ndarray
    nfe: float
    nfe_each: np.ndarray | None = None

    def pil(self) -> list[Any]:
        """The images for PIL."""
        from PIL import Image

        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in self.images]


class DiffusionPipeline:
    """A bundle, ready to draw; the same seed and label give the same image, whatever is drawn beside it.

    Attributes:
        bundle: the model, its noise schedule and its sampler.
        scheduler: steps by budget, or None; then only the bundle's own steps can be drawn.
    """

    def __init__(self, bundle: Bundle, scheduler: AdaptiveScheduler | None = None) -> None:
        self.bundle, self.scheduler = bundle, scheduler

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> DiffusionPipeline:
        """The bundle of a folder.  Raises: DataError as `read_bundle`."""
        hardware.prepare()
        return cls(read_bundle(Path(folder)))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the bundle, which diffusers opens."""
        bundle = self.bundle
        write_bundle(Path(folder), bundle.model, bundle.schedule, bundle.sampler, bundle.lineage)

    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        num_images: int | None = None,
        seed: int = 0,
        nfe: int | None = None,
        guidance_scale: float | Guidance | None = None,
        batch_size: int = 32,
        tolerance: float | None = None,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        grid: str | Grid | Sequence[float] | None = None,
        callback: Callback | None = None,
        quality: float | None = None,
        coverage: float = 0.95,
    ) -> PipelineOutput:
        """Draw images: one a label, or num_images of any class.

        nfe: network evaluations an image may cost, where a scheduler was fitted; the bundle's own steps otherwise.
        num_inference_steps: steps of a solver on a named grid instead, as diffusers counts them (Heun evaluates twice).
        solver: a name of `samplers.SOLVERS`, dpmpp_2m unless told; those that draw noise give each image its own.
        grid: a name of `samplers.GRIDS`, log_snr unless told; or a grid of one's own, or falling noise levels.
        callback: callback(step_index, sigma, x0_estimate) of each batch in turn, for previews; True ends the batch.
        guidance_scale: a scale, or a `Guidance` with its interval, rescale and threshold; the bundle's own otherwise.
        tolerance: of error-controlled steps, 0.02 for example: each image then takes what it needs, with no grid.
        quality: RMS distance to the many-step result that a share of `coverage` of every class's images is to be
            within, where a scheduler was fitted: each image takes what its class needs (`AdaptiveScheduler.needed`).
        Raises: DataError for a budget without a scheduler, more than one way of choosing the steps, labels and a
            number that differ, no images, or guidance without labels; ValueError for labels out of range, an unknown
            solver or grid, or noise levels that do not fall.
        """
        if class_labels is not None and num_images not in (None, len(class_labels)):
            raise DataError(f"{len(class_labels)} labels and num_images {num_images} differ: give one of them")
        count = len(class_labels) if class_labels is not None else 1 if num_images is None else num_images
        if count < 1:
            raise DataError(f"at least one image must be asked for, got {count}")
        asked = guidance_scale if isinstance(guidance_scale, Guidance) else Guidance(guidance_scale or 0.0)
        if class_labels is None and guidance_scale not in (None, 0.0) and asked.on:
            raise DataError("guidance needs a condition: give class_labels, or leave guidance_scale out")
        noise = bundle_noise(self.bundle, seed, count)
        named, levels = (grid, None) if isinstance(grid, str) else (None, grid)
        ways = {"nfe": nfe, "tolerance": tolerance, "num_inference_steps": num_inference_steps, "grid": levels}
        ways |= {"quality": quality}
        given = [f"{name} {value}" for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise DataError(f"{' and '.join(given)} each choose the steps: give one of them")
        if (solver or named) and num_inference_steps is None and levels is None:
            raise DataError("a solver or a named grid goes with num_inference_steps: give how many, or leave them out")
        if tolerance is not None:
            if callback is not None:
                raise DataError("with a tolerance each image takes its own steps: there is no callback to call")
            return self._within(noise, class_labels, guidance_scale, tolerance)
        if quality is not None:
            if guidance_scale is not None or callback is not None:
                raise DataError(
                    "a quality holds with the bundle's own guidance, class by class: leave guidance_scale "
                    "and callback out"
                )
            return self._of_quality(noise, class_labels, quality, coverage, batch_size)
        if num_inference_steps is not None:
            levels = make_grid(named or "log_snr", self.bundle.schedule, num_inference_steps)
        steps, method = (levels, solver or "dpmpp_2m") if levels is not None else self._steps(nfe)
        keys = None
        if find_solver(method).stochastic:
            keys = split(mx.array([[seed, i] for i in range(count)], dtype=mx.uint32))[1]
        drawn = sample_bundle(
            self.bundle, noise, class_labels, steps, method, batch_size, guidance_scale, callback, keys
        )
        mx.eval(drawn.images)
        return PipelineOutput(to_uint8(np.array(drawn.images)), drawn.nfe)

    def optimize(
        self,
        *,
        nfe: int | None = None,
        budget_ms: float | None = None,
        quality: float | None = None,
        batch: int = 16,
        tell: Tell = print,
        **effort: Any,
    ) -> DiffusionPipeline:
        """A pipeline with the best steps for one goal, as `mlx-tasks optimize` finds them.

        nfe: network evaluations an image; budget_ms: milliseconds an image in batches of `batch` on this machine;
        quality: RMS distance to the many-step result.  effort: tries, iterations, seed, noises, methods.
        Raises: DataError unless exactly one goal is given, or where it cannot be met.
        """
        from mlx_tasks.optimizing.device_cost import measure_cost

        if sum(goal is not None for goal in (nfe, budget_ms, quality)) != 1:
            raise DataError("give one goal: nfe, budget_ms or quality")
        optimizer = self._optimizer(tell=tell, **effort)
        if quality is not None:
            outcome = optimizer.fewest(quality)
        elif nfe is not None:
            outcome = optimizer.at(nfe // optimizer.branches)
        else:
            cost = measure_cost(self.bundle, batch, hardware.detect().chip)
            outcome = optimizer.at(cost.steps_within(float(budget_ms or 0.0)))
        return DiffusionPipeline(replace(self.bundle, sampler=optimizer.sampler(outcome)), self.scheduler)

    def _of_quality(
        self, noise: mx.array, labels: Sequence[int] | None, quality: float, coverage: float, batch_size: int
    ) -> PipelineOutput:
        """Each class's own number of evaluations; images of equal numbers are drawn together."""
        if self.scheduler is None:
            raise DataError("quality needs a scheduler: DiffusionPipeline(pipe.bundle, AdaptiveScheduler.fit(pipe))")
        if labels is None and self.bundle.sampler.class_names:
            raise DataError("a quality is promised class by class: give class_labels")
        check_labels(self.bundle, labels, len(noise))
        if labels is not None and max(labels) >= len(self.bundle.sampler.class_names):
            raise DataError(f"a quality is promised for the bundle's classes, got the empty label {max(labels)}")
        own = np.zeros(len(noise), int) if labels is None else np.asarray(labels)
        known = self.scheduler.needed(quality, coverage)
        if len(known) != max(1, len(self.bundle.sampler.class_names)):
            raise DataError(
                f"the scheduler was fitted to {len(known)} classes, the bundle has others: fit it to this one"
            )
        needed = known[own]
        images: dict[int, np.ndarray] = {}
        for nfe in np.unique(needed).tolist():
            rows = np.flatnonzero(needed == nfe)
            sampler = self.scheduler.samplers[nfe]
            drawn = sample_bundle(
                replace(self.bundle, sampler=sampler),
                noise[mx.array(rows)],
                None if labels is None else own[rows],
                batch_size=batch_size,
            )
            images |= dict(zip(rows.tolist(), to_uint8(np.array(drawn.images)), strict=True))
        return PipelineOutput(np.stack([images[i] for i in range(len(noise))]), float(needed.mean()), needed)

    def _within(
        self, noise: mx.array, labels: Sequence[int] | None, scale: float | Guidance | None, tolerance: float
    ) -> PipelineOutput:
        """Error-controlled steps."""
        from mlx_tasks.learned_steps.error_controlled import Control, sample_within

        bundle = self.bundle
        known = check_labels(bundle, labels, len(noise))
        guidance = bundle.sampler.guidance_scale if scale is None else scale

        def denoise(rows: np.ndarray) -> NetworkDenoiser:
            own = None if known is None else known[mx.array(rows)]
            strength = 1.0 if labels is None else guidance
            return network_denoiser(bundle.model, bundle.schedule, own, strength, bundle.sampler.null_label)

        levels = bundle.schedule.sigmas
        control = Control(tolerance, start=min(Control.start, float(levels[-1])))
        drawn = sample_within(denoise, noise, control)
        if not drawn.met.all():
            logger.warning(
                "tolerance=%g met=%d of %d: the others end after %d calls; ask for less",
                tolerance,
                int(drawn.met.sum()),
                len(noise),
                control.most,
            )
        return PipelineOutput(to_uint8(np.array(drawn.images)), float(drawn.nfe.mean()), drawn.nfe)

    def _steps(self, nfe: int | None) -> tuple[Grid | LearnedSteps, str]:
        if nfe is None:
            return own_steps(self.bundle), self.bundle.sampler.solver
        if self.scheduler is None:
            raise DataError("nfe needs a scheduler: DiffusionPipeline(pipe.bundle, AdaptiveScheduler.fit(pipe))")
        sampler = self.scheduler.sampler(nfe)
        if sampler.learned is not None:
            return sampler.learned, "learned"
        return grid_from_timesteps(self.bundle.schedule, sampler.timesteps), sampler.solver

    def _optimizer(
        self, *, tell: Tell, tries: int = 48, iterations: int = 200, seed: int = 0, noises: int = 128, **more: Any
    ) -> Any:
        from mlx_tasks.learned_steps.methods import Effort
        from mlx_tasks.optimizing.optimizer import Optimizer

        return Optimizer(self.bundle, Effort(tries, iterations, seed), noises=noises, tell=tell, **more)
