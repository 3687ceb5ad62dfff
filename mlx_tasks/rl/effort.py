"""What a time allows: how many noises, grids and methods `tune` works with, from what one network evaluation costs.

Everything is decided before anything is learned, from one measured number, and whole methods are left out, never half
of one: the same number gives the same plan, and a run that goes on after a kill takes the plan that it began with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlx_tasks.learned_steps.methods import GRADIENT_COST, PATH_LEVELS, SEARCH_TASKS
from mlx_tasks.rl.comparison import DEFAULT_GRIDS, PPO
from mlx_tasks.rl.plain_search import TUNED

if TYPE_CHECKING:
    from mlx_tasks.config import Tune

TUNING_BATCHES, SELECTION_BATCHES = 4, 2
"""Batches that are learned on, and those that choose among policies and iterates, and turn the policy into a grid."""
ORDER = ("remembered", "least_squares", "shortest_path", "cma_es", "gradient_levels", PPO, "gradient")
"""Methods as they get their share of the time: what finds most for its evaluations comes first (docs/schedules.md)."""
LEAST_TRIES, LEAST_NOISES = 4, 8
PREPARING = 0.4
"""Share of the time that the many-step results and the comparison may take before there are fewer noises."""
SEARCHING = 0.5
"""Share of what is left then that the plain searches may take before they try fewer grids."""


@dataclass(frozen=True)
class Size:
    """What everything is judged on.

    Attributes:
        tuning, selection, test: noises of each purpose.
        batch: noises of a batch.
        reference_steps: of the many-step results.
    """

    tuning: int
    selection: int
    test: int
    batch: int
    reference_steps: int

    @property
    def noises(self) -> dict[str, int]:
        """By purpose."""
        return {"tuning": self.tuning, "selection": self.selection, "test": self.test}


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        size: noises and many-step results.
        tries: grids of a plain search.
        methods: those that are learned with.
        left_out: method, or what there is less of -> why.
        evaluations: network evaluations of one image that all of it is expected to take.
        seconds_per_evaluation: as measured.
    """

    size: Size
    tries: int
    methods: tuple[str, ...]
    left_out: dict[str, str]
    evaluations: int
    seconds_per_evaluation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"methods": list(self.methods)}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        return cls(**{**told, "size": Size(**told["size"]), "methods": tuple(told["methods"])})


def make_plan(tune: Tune, seconds_per_evaluation: float) -> Plan:
    """As much of what the params ask for as `tune.max_minutes` allows, at this cost of an evaluation of one image.

    The least is done whatever it takes: few noises, a plain search of few grids, the remembered grid.
    """
    seconds = float("inf") if tune.max_minutes is None else 60 * tune.max_minutes
    allowed = seconds / max(seconds_per_evaluation, 1e-12)
    why = f"tune.max_minutes is {tune.max_minutes:g}" if tune.max_minutes is not None else ""
    left_out: dict[str, str] = {}
    sizes = _sizes(tune)
    size = next((one for one in sizes if _preparing(tune, one) <= PREPARING * allowed), sizes[-1])
    if size != sizes[0]:
        counts = [f"{sum(one.noises.values())} of {one.reference_steps} steps" for one in (size, sizes[0])]
        left_out["noises"] = f"{' instead of '.join(counts)}: {why}"
    spent = _preparing(tune, size)
    tries = tune.search_evaluations
    while tries > LEAST_TRIES and _plain(tune, size, tries) > SEARCHING * (allowed - spent):
        tries = max(LEAST_TRIES, tries // 2)
    if tries != tune.search_evaluations:
        left_out["search_evaluations"] = f"{tries} instead of {tune.search_evaluations}: {why}"
    spent += _plain(tune, size, tries)
    taken = []
    for name in sorted(tune.methods, key=ORDER.index):
        cost = _cost(tune, name, size)
        if spent + cost <= allowed or name == "remembered":
            taken.append(name)
            spent += cost
        else:
            left_out[name] = f"it would take about {cost * seconds_per_evaluation / 60:.3g} minutes more: {why}"
    methods = tuple(name for name in tune.methods if name in taken)
    return Plan(size, tries, methods, left_out, round(spent), seconds_per_evaluation)


def _sizes(tune: Tune) -> list[Size]:
    """From what is asked for down to the least."""
    batch, test, steps = tune.batch_size, tune.test_noises, tune.reference_steps
    asked = Size(TUNING_BATCHES * batch, SELECTION_BATCHES * batch, test, batch, steps)
    made = [asked]
    for part in (2, 4, 8, 16):
        small = max(1, min(batch, 2 * batch // part))
        few = min(test, max(LEAST_NOISES, test // part))
        made.append(Size(2 * small, small, few, small, max(min(steps, 16), steps // (1 if part < 8 else 2))))
    return made


def _preparing(tune: Tune, size: Size) -> float:
    """Evaluations of the many-step results, and of the comparison of everything on the test's noises."""
    compared = len(DEFAULT_GRIDS) + len(TUNED) + len(tune.methods)
    return sum(size.noises.values()) * size.reference_steps + size.test * compared * sum(tune.nfe_budgets)


def _plain(tune: Tune, size: Size, tries: int) -> float:
    return len(TUNED) * tries * len(SEARCH_TASKS) * size.batch * sum(tune.nfe_budgets)


def _cost(tune: Tune, name: str, size: Size) -> float:
    """Evaluations that a method takes over all budgets: as counted where it is fixed, else about as measured."""
    batch, budgets = size.batch, tune.nfe_budgets
    searched = len(SEARCH_TASKS) * batch
    match name:
        case "remembered":
            return searched * sum(budgets)
        case "shortest_path":
            return searched * sum(max(PATH_LEVELS, n) + n for n in budgets)
        case "least_squares":
            return sum(_least_squares(n, size.tuning) for n in budgets)
        case "ppo":
            judged = size.selection * sum(budgets) * (tune.ppo_steps / 128 + 1)
            return tune.ppo_steps * batch + judged
        case _:
            return GRADIENT_COST * tune.gradient_iterations * batch * sum(budgets)


def _least_squares(num_steps: int, noises: int) -> float:
    """Six Jacobians over all noises, each of 4.5 n numbers whose runs begin at their own step, half way on average."""
    return 6 * noises * 4.5 * num_steps * num_steps / 2
