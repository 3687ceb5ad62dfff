"""What results of schedules.py say: errors and costs of the ways to choose steps, by budget and seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

SEARCHED = ("log_snr_tuned", "karras_tuned")
SEEDS = (0, 1, 2)


class Table:
    """A result of schedules.py.

    Args:
        result: the stored file, whole.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self.budgets: list[int] = result["config"]["nfe_budgets"]
        self._rows = {(r["grid"], r["budget"], r["seed"]): r for r in result["rows"] if "grid" in r}

    def error(self, grid: str, budget: int, seed: int) -> float:
        """The distance to the many-step result; `searched` is the better of the plain searches."""
        if grid == "searched":
            return min(self.error(one, budget, seed) for one in SEARCHED)
        return self._rows[grid, budget, seed]["error"]

    def mean(self, grid: str, budget: int) -> float:
        """The mean error over seeds."""
        return mean(self.error(grid, budget, seed) for seed in SEEDS)

    def ratios(self, of: str, to: str, budget: int) -> list[float]:
        """One grid's error over another's, by seed."""
        return [self.error(of, budget, seed) / self.error(to, budget, seed) for seed in SEEDS]

    def all_ratios(self, of: str, to: str) -> list[float]:
        """The same at every budget."""
        return [ratio for budget in self.budgets for ratio in self.ratios(of, to, budget)]

    def spent(self, grid: str, budget: int) -> float:
        """Evaluations that finding the steps took, the mean over seeds."""
        return mean(self._rows[grid, budget, seed]["learning_evaluations"] for seed in SEEDS)

    def spent_by_seed(self, grid: str, budget: int) -> list[float]:
        """The same, seed by seed."""
        return [self._rows[grid, budget, seed]["learning_evaluations"] for seed in SEEDS]


def three(value: float) -> str:
    """Three digits that count, four places at most."""
    return f"{value:.4f}" if value < 0.01 else f"{value:#.3g}"


def hundreds(value: float) -> str:
    """To the hundred, thousands apart."""
    return f"{round(value / 100) * 100:,}"


def listed(values: Sequence[float], places: int = 1, last: str = ", ") -> str:
    """The values with commas between, and before the last one what is given."""
    told = [f"{value:.{places}f}" for value in values]
    return last.join([", ".join(told[:-1]), told[-1]])


def span(values: Sequence[float], places: int) -> str:
    """The least and the most."""
    return f"{min(values):.{places}f} to {max(values):.{places}f}"
