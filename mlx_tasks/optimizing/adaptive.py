"""Steps learned for several budgets, and which of them each image needs for a stated quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.models.bundle import Sampler

if TYPE_CHECKING:
    from mlx_tasks.pipeline import DiffusionPipeline

Tell = Callable[[str], None]


@dataclass(frozen=True)
class AdaptiveScheduler:
    """Steps for every budget: learned for several numbers of evaluations, the largest that fits is taken.

    Attributes:
        samplers: network evaluations -> the sampler that was best for them.
        errors: network evaluations -> its distance to the many-step result, on noises that nothing was learned on.
        held_out: network evaluations -> (classes, N) distances on yet other noises, class by class: by them images are
            given the evaluations that their class needs.  One row for a model without classes.
    """

    samplers: Mapping[int, Sampler]
    errors: Mapping[int, float]
    held_out: Mapping[int, np.ndarray] = field(default_factory=dict, compare=False)

    @classmethod
    def fit(
        cls,
        pipeline: DiffusionPipeline,
        nfe: Sequence[int] = (4, 6, 8),
        tell: Tell = print,
        calibration: int = 64,
        **effort: Any,
    ) -> AdaptiveScheduler:
        """Learn steps for each number of evaluations.

        calibration: noises of each class that qualities are promised by.  effort: as `DiffusionPipeline.optimize`
        takes it.
        Raises: DataError for no numbers or no noises, and as `DiffusionPipeline.optimize`.
        """
        if not nfe or calibration < 1:
            raise DataError(
                f"give numbers of evaluations and at least one noise to calibrate on, got {nfe}, {calibration}"
            )
        optimizer = pipeline._optimizer(tell=tell, **effort)
        outcomes = [optimizer.at(budget // optimizer.branches) for budget in sorted(set(nfe))]
        samplers = {outcome.best["nfe"]: optimizer.sampler(outcome) for outcome in outcomes}
        tell(f"many-step results of {calibration} noises of each class (calibration)")
        held_out = optimizer.errors_by_class(samplers, calibration, "calibration")
        return cls(samplers, {outcome.best["nfe"]: float(outcome.best["error"]) for outcome in outcomes}, held_out)

    def sampler(self, nfe: int) -> Sampler:
        """The sampler for a budget.  Raises: DataError where it is below the least that was learned."""
        fitting = [known for known in self.samplers if known <= nfe]
        if not fitting:
            raise DataError(f"steps were learned for {sorted(self.samplers)} evaluations, got a budget of {nfe}")
        return self.samplers[max(fitting)]

    def needed(self, quality: float, coverage: float = 0.95) -> np.ndarray:
        """(classes,) the fewest evaluations that keep a share of `coverage` of a class's images within `quality`.

        quality: RMS distance to the many-step result.  The share is promised for fresh noise, on average over
        calibrations: conformal risk control with the evaluations as its parameter, an image's loss being whether its
        error at these evaluations or at any more exceeds the quality.
        Source: Angelopoulos et al. 2024, "Conformal Risk Control", Theorem 1.
        Raises: DataError for numbers that are none, too few noises for the coverage, or a class that no number of
            evaluations learned here brings there, with what they reach.
        """
        if not (0.0 < quality < float("inf") and 0.0 < coverage < 1.0):
            raise DataError(f"quality must be above 0 and coverage between 0 and 1, got {quality} and {coverage}")
        if not self.held_out:
            raise DataError("this scheduler knows no class's errors: fit it again")
        budgets = sorted(self.held_out)
        errors = np.stack([self.held_out[nfe] for nfe in budgets])  # (budgets, classes, N)
        count = errors.shape[2]
        allowed = (1.0 - coverage) * (count + 1) + 1e-9
        if allowed < 1.0:
            least = math.ceil(1.0 / (1.0 - coverage) - 1e-9) - 1
            raise DataError(f"a coverage of {coverage} takes {least} noises a class, there are {count}")
        worst_from_here = np.maximum.accumulate(errors[::-1], axis=0)[::-1]
        missed = (worst_from_here > quality).sum(axis=2)
        holds = missed + 1 <= allowed
        for label in np.flatnonzero(~holds[-1]).tolist():
            reached = float(np.quantile(errors[-1, label], coverage, method="higher"))
            raise DataError(
                f"a quality of {quality:g} is not reached for class {label}: {budgets[-1]} evaluations leave "
                f"{coverage:.0%} of its images within {reached:.4g}; ask for less, or fit for more evaluations"
            )
        return np.array(budgets)[holds.argmax(axis=0)]

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        rows = {
            str(nfe): {"error": self.errors[nfe], "sampler": sampler.to_dict()}
            | ({"held_out": self.held_out[nfe].tolist()} if nfe in self.held_out else {})
            for nfe, sampler in self.samplers.items()
        }
        write_json(Path(path), rows)

    @classmethod
    def load(cls, path: Path | str) -> AdaptiveScheduler:
        """What `save` wrote.  Raises: DataError for another file."""
        try:
            rows = read_json(Path(path))
            samplers = {int(n): Sampler.from_dict(row["sampler"]) for n, row in rows.items()}
            held_out = {int(n): np.array(row["held_out"], float) for n, row in rows.items() if "held_out" in row}
            if held_out and (
                len({one.shape for one in held_out.values()}) > 1 or next(iter(held_out.values())).ndim != 2
            ):
                raise ValueError("held_out must be (classes, N), the same for every number of evaluations")
            return cls(samplers, {int(n): float(row["error"]) for n, row in rows.items()}, held_out)
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is no saved AdaptiveScheduler ({error!r})") from None
