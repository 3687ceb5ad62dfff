"""Find the best steps for a bundle, and the fewest that are good enough, on noises kept apart from those learned on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.data.loader import to_uint8
from mlx_tasks.errors import DataError
from mlx_tasks.learned_steps.methods import Effort, find_steps
from mlx_tasks.metrics.bootstrap import bootstrap_mean
from mlx_tasks.rl.comparison import CONFIDENCE, DEFAULT_GRIDS, RESAMPLES, compare, default_grids
from mlx_tasks.rl.plain_search import Found
from mlx_tasks.rl.problem import Problem, bundle_problem, endpoint_errors
from mlx_tasks.samplers.bundle_sampler import own_steps
from mlx_tasks.samplers.driver import sample
from mlx_tasks.samplers.grids import make_grid
from mlx_tasks.samplers.learned import LearnedSteps

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle, Sampler

SOLVER = "dpmpp_2m"
METHODS = ("shortest_path", "cma_es", "least_squares")
MOST_STEPS = 32
CURVE = (2, 3, 4, 6, 8, 12, 16, 24)
"""Steps at which the default grids are shown beside what was found."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """The best steps found for one number of them.

    Attributes:
        num_steps: solver steps.
        rows: method -> {solver, timesteps, learned, nfe, error, low, high, learning_evaluations, learning_seconds}.
        kept: the method that is kept; verdict: why.
    """

    num_steps: int
    rows: dict[str, dict[str, Any]]
    kept: str
    verdict: str

    @property
    def best(self) -> dict[str, Any]:
        """The kept method's row."""
        return self.rows[self.kept]


@dataclass(frozen=True)
class Shown:
    """What one way of sampling makes of the noises that all are shown on.

    Attributes:
        name: a method, "before" (the bundle's own steps) or "many_steps".
        nfe: network evaluations of an image.
        error: mean distance to the many-step result over all noises of the test.
        images: (count, H, W, C) uint8.
    """

    name: str
    nfe: int
    error: float
    images: np.ndarray


class Optimizer:
    """A bundle with noises to learn on, to choose on and to judge on; each number of steps is looked at once.

    Errors are root mean square distances to the result of `reference_steps` steps from the same noise, in units of half
    the pixels' range.
    """

    def __init__(
        self,
        bundle: Bundle,
        effort: Effort,
        *,
        noises: int = 128,
        batch_size: int = 16,
        reference_steps: int = 64,
        methods: Sequence[str] = METHODS,
        tell: Tell = lambda _: None,
    ) -> None:
        self.bundle, self.effort, self.methods, self.tell = bundle, effort, tuple(methods), tell
        self.reference_steps = reference_steps
        self._problems: dict[str, Problem] = {}
        for purpose, count in (("tuning", 4 * batch_size), ("selection", 2 * batch_size), ("test", noises)):
            tell(f"many-step results of {count} noises ({purpose})")
            self._problems[purpose] = bundle_problem(
                bundle, SOLVER, effort.seed, purpose, count, batch_size, reference_steps
            )[0]
        self._known: dict[int, Outcome] = {}

    @property
    def branches(self) -> int:
        """Network evaluations a step: 2 where guidance is not folded in."""
        return self._problems["test"].tasks[0].denoise.evaluations

    def at(self, num_steps: int) -> Outcome:
        """Every method at a number of steps, judged on the test's noises.

        Raises: DataError outside 1 to MOST_STEPS.
        """
        if not 1 <= num_steps <= MOST_STEPS:
            raise DataError(f"steps must lie in [1, {MOST_STEPS}], got {num_steps}")
        if num_steps not in self._known:
            self.tell(f"{num_steps} steps: searching")
            found: dict[str, Found] = {}
            for name, one in find_steps(
                self._problems["tuning"], self._problems["selection"], num_steps, self.methods, self.effort
            ):
                found[name] = one
                self.tell(f"{num_steps} steps: {name} done in {one.seconds:.0f} s")
            rows, verdict = compare(self._problems["test"], num_steps, found, self.effort.seed)
            self._known[num_steps] = Outcome(num_steps, rows, verdict.kept, verdict.text)
            self.tell(f"{num_steps} steps: {verdict.text}")
        return self._known[num_steps]

    def fewest(self, quality: float, most: int = MOST_STEPS) -> Outcome:
        """The fewest steps whose error's interval ends at or below `quality`, by bisection over the measured curve.

        The steps are doubled until it holds, so that long runs, which are dear to search, are looked at last.  The
        error falls with the steps but for noise, which is what bisection takes for granted; the outcome found is
        itself measured, and so is the next smaller one, which misses.
        Raises: DataError for a quality that is none, or where `most` steps miss it too, with the error they have.
        """
        if not (math.isfinite(quality) and quality > 0):
            raise DataError(f"a quality is a distance above 0, 0.02 for example, got {quality!r}")
        low, high = 0, 1  # low misses
        while self.at(high).best["high"] > quality:
            if high >= most:
                last = self.at(high).best
                raise DataError(
                    f"an error of {quality:g} is not reached in {most} steps: they have {last['error']:.4g} "
                    f"({last['low']:.4g} to {last['high']:.4g}); ask for less, or train the network on"
                )
            low, high = high, min(most, 2 * high)
        while high - low > 1:
            middle = (low + high) // 2
            if self.at(middle).best["high"] <= quality:
                high = middle
            else:
                low = middle
        return self.at(high)

    def curve(self) -> list[dict[str, Any]]:
        """Errors of the default grids by steps, and of everything that was searched: [{method, nfe, error, low, high}].

        Intervals are 95 % bootstrap intervals over the test's noises.
        """
        test, rows = self._problems["test"], []
        for steps in sorted({*CURVE, *self._known}):
            known = self._known[steps].rows if steps in self._known else {}
            for name, grid in default_grids(test, steps).items():
                if name not in known:
                    found = bootstrap_mean(test.errors(grid), RESAMPLES, CONFIDENCE, self.effort.seed)
                    own = {"error": found.value, "low": found.low, "high": found.high}
                    rows.append({"method": name, "nfe": self.branches * steps, **own})
            rows += [
                {"method": name, **{key: row[key] for key in ("nfe", "error", "low", "high")}}
                for name, row in known.items()
            ]
        return rows

    def shown(self, outcome: Outcome, count: int = 8) -> list[Shown]:
        """The same noises by the steps that are kept, the bundle's own, the best default grid and very many steps.

        count: images of each, from the first noises that the methods are judged on.
        """
        tasks, sampler = self._problems["test"].tasks, self.sampler(outcome)
        plain = min(DEFAULT_GRIDS, key=lambda name: outcome.rows[name]["error"])
        ways = {
            outcome.kept: (own_steps(replace(self.bundle, sampler=sampler)), sampler.solver),
            "before": (own_steps(self.bundle), self.bundle.sampler.solver),
            plain: (make_grid(plain, self.bundle.schedule, outcome.num_steps), SOLVER),
        }
        truth = np.concatenate([task.truth for task in tasks])
        made = []
        for name, (steps, solver) in ways.items():
            drawn = [sample(task.denoise, task.noise, steps, solver) for task in tasks]
            images = np.concatenate([np.array(one.images) for one in drawn])
            error = float(endpoint_errors(images, truth).mean())
            made.append(Shown(name, drawn[0].nfe, error, to_uint8(images[:count])))
        reference = self.branches * self.reference_steps
        return [*made, Shown("many_steps", reference, 0.0, to_uint8(truth[:count]))]

    def errors_by_class(self, samplers: Mapping[int, Sampler], count: int, purpose: str) -> dict[int, np.ndarray]:
        """{key of a sampler: (classes, count)} distances to the many-step result, on noises of that purpose alone.

        A model without classes has one row.
        """
        classes = max(1, len(self.bundle.sampler.class_names))
        problem, _ = bundle_problem(
            self.bundle, SOLVER, self.effort.seed, purpose, classes * count, 64, self.reference_steps
        )
        # Classes take turns in a problem's noises.
        return {
            key: problem.errors(own_steps(replace(self.bundle, sampler=sampler))).reshape(count, classes).T
            for key, sampler in samplers.items()
        }

    def sampler(self, outcome: Outcome) -> Sampler:
        """The bundle's sampler with the outcome's steps."""
        row = outcome.best
        learned = LearnedSteps.from_dict(row["learned"]) if row["learned"] else None
        return replace(
            self.bundle.sampler,
            solver=row["solver"],
            timesteps=tuple(row["timesteps"]),
            nfe=row["nfe"],
            learned=learned,
        )
