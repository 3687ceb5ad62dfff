"""The figures of docs/schedules.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import Table, hundreds, listed, span, three

page = Page("docs/schedules.md")

digits = Table(page.result("schedules"))
page.row("steps", *digits.budgets)
for name in (
    "uniform",
    "log_snr",
    "karras",
    "log_snr_tuned",
    "karras_tuned",
    "shortest_path",
    "cma_es",
    "ppo",
    "gradient",
):
    page.row(f"`{name}`", *(three(digits.mean(name, n)) for n in digits.budgets))
page.row("`least_squares`", *(f"**{three(digits.mean('least_squares', n))}**" for n in digits.budgets))


def by_seed(table: Table, label: str, grid: str, places: int) -> None:
    """A row of the searched ends' error over a grid's."""
    page.row(label, *(listed(table.ratios("searched", grid, n), places) for n in table.budgets))


by_seed(digits, "best searched ends over `least_squares`, by seed", "least_squares", 1)
by_seed(digits, "the same over `ppo`", "ppo", 2)
page.row("evaluations spent: each plain search", *(hundreds(digits.spent("log_snr_tuned", n)) for n in digits.budgets))
for name in ("cma_es", "gradient", "least_squares"):
    page.row(f"`{name}`", *(hundreds(digits.spent(name, n)) for n in digits.budgets))
page.says(f"PPO spent {hundreds(digits.spent('ppo', 3))} on all budgets together (three seeds' mean)")
of_state = [100 * abs(ratio - 1) for ratio in digits.all_ratios("ppo_state", "ppo")]
guided = Table(page.result("schedules_guided"))
of_guided_state = [100 * abs(ratio - 1) for ratio in guided.all_ratios("ppo_state", "ppo")]
page.says(f"changes its errors by {max(of_state):.1f} % at most, with guidance by {max(of_guided_state):.1f} %")
of_start = digits.all_ratios("ppo", "searched")
page.says(
    f"It ends at {span(of_start, 2)} of the error of the searched ends it starts from, "
    f"{sum(of_start) / len(of_start):.2f} on average."
)

page.row("best searched ends", *(three(guided.mean("searched", n)) for n in guided.budgets))
for name in ("shortest_path", "cma_es", "ppo"):
    page.row(f"`{name}`", *(three(guided.mean(name, n)) for n in guided.budgets))
page.row("`least_squares`", *(f"**{three(guided.mean('least_squares', n))}**" for n in guided.budgets))
by_seed(guided, "best searched ends over `least_squares`, by seed", "least_squares", 1)
by_seed(guided, "the same over `ppo`", "ppo", 2)
page.row("evaluations `least_squares` spent", *(hundreds(guided.spent("least_squares", n)) for n in guided.budgets))

patterns = Table(page.result("schedules_patterns_5"))
told = ", ".join(
    f"{label} {patterns.mean(grid, 5):.3f}"
    for label, grid in (("best searched ends", "searched"), ("CMA-ES", "cma_es"), ("`least_squares`", "least_squares"))
)
page.says(
    f"at 5 steps {told}, by seed {listed(patterns.ratios('searched', 'least_squares', 5), 2, ' and ')} times less"
)
earlier = Table(page.result("schedules_patterns"))
values = [earlier.mean(grid, 8) for grid in ("searched", "cma_es", "least_squares")]
ratios = listed(earlier.ratios("searched", "least_squares", 8), 1, " and ")
page.says(f"{listed(values, 3, ' and ')}, by seed {ratios} times less")

few = page.result("few_steps_scores")["rows"]
distances = {
    sampler: [row["frechet_distance"]["value"] for row in few if row["sampler"] == sampler]
    for sampler in {row["sampler"] for row in few}
}
many = next(name for name in distances if name.startswith("ddim"))
differences = sorted(distances["difference"], reverse=True)
page.says(
    f"(Frechet distance {span(distances['least_squares-5'], 3)} against {span(distances[many], 3)}, paired differences "
    f"of {differences[0]:.3f} to {differences[-1]:.3f} in three seeds"
)

complexity = page.result("complexity_steps")["rows"]


def ranks(of: str, measure: str) -> list[dict]:
    """The three seeds' rows of a measure."""
    return [row for row in complexity if (row["of"], row["measure"]) == (of, measure)]


steps = [row["mean_steps"] for row in complexity]
spreads = [row["spread_steps"] for row in complexity]
page.says(f"{span(steps, 1)} on average, spread {span(spreads, 1)})")


def three_seeds(of: str, measure: str, last: str = " and ") -> str:
    """The rank correlations of a measure."""
    return listed([row["spearman"] for row in ranks(of, measure)], 2, last)


intervals = [f"{row['low']:.2f} to {row['high']:.2f}" for row in ranks("finished image", "png_bytes")]
page.says(
    f"rank with the steps needed by {three_seeds('finished image', 'png_bytes')} in three seeds (Spearman; intervals "
    f"{', '.join(intervals[:-1])} and {intervals[-1]})"
)
page.says(f"its mean gradient ranks by {three_seeds('estimate after two calls', 'gradient')}.")
page.says(f"come within {page.result('complexity_steps')['config']['tolerance']} of the many-step result")

cma = [1 - digits.mean("cma_es", n) / digits.mean("ppo", n) for n in digits.budgets]
page.says(f"so does CMA-ES, by {100 * cma[0]:.0f} % at 3 steps and a fifth from 4 on")
scores = {row["candidate"]: row["metrics"]["frechet_distance"]["value"] for row in page.result("demo_results")["rows"]}
page.says(f"a plain log-SNR grid of six steps scores {scores['searched-log_snr-nfe6']:.3f} there")

page.given("48 tries come within 5 % of it", "tests/test_rl_learning.py holds it against brute force")
page.given("Errors come with 95 % bootstrap intervals", "the level: a setting")
page.given("(the demo's teacher at 1.5, two evaluations a step", "the scale that it was run at")
