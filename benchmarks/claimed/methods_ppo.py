"""The figures of docs/methods/ppo.md."""

from __future__ import annotations

from statistics import mean

from claim import Page
from schedule_tables import Table, hundreds, listed, span

page = Page("docs/methods/ppo.md")
rows = page.result("ppo_episodes")["rows"]


def of(variant: str) -> list[dict]:
    """The three seeds' rows."""
    return sorted((row for row in rows if row["variant"] == variant), key=lambda row: row["seed"])


ends = [row["curve"][-1] for row in of("searched")]
reached = [f"{row['first_reaches']}" for row in of("searched")]
page.says(f"after {', '.join(reached[:-1])} and {reached[-1]} episodes")
page.says(f"ends at {listed([end[1] for end in ends], 2, ' and ')} of their error after {ends[0][0]}")
even = [row["curve"][-1] for row in of("even")]
page.says(f"not reached them after {even[0][0]} ({listed([end[1] for end in even], 2)})")
digits, guided = Table(page.result("schedules")), Table(page.result("schedules_guided"))
of_start, of_guided = digits.all_ratios("ppo", "searched"), guided.all_ratios("ppo", "searched")
page.says(
    f"it ends at {span(of_start, 2)} of their error on fresh noise, at {mean(of_start):.2f} on average "
    f"(`schedules.py`, three seeds), and with guidance at {span(of_guided, 2)}, at {mean(of_guided):.2f}."
)
state = [100 * abs(r - 1) for r in digits.all_ratios("ppo_state", "ppo")]
guided_state = [100 * abs(r - 1) for r in guided.all_ratios("ppo_state", "ppo")]
page.says(f"changes its errors by {max(state):.1f} % at most, with guidance by {max(guided_state):.1f} %")
spent = digits.spent("ppo", digits.budgets[0])
page.says(f"PPO's {hundreds(spent)} evaluations")
control = {row["variant"]: row for row in page.result("ppo_control")["rows"]}
page.says(
    f"ends at {control['control']['curve'][-1][1]:.2f} of the searched grids' error after "
    f"{control['control']['curve'][-1][0]} episodes, one that chooses levels alone at "
    f"{control['searched']['curve'][-1][1]:.2f} after {control['searched']['first_reaches']}"
)
total = sum(digits.spent("least_squares", n) for n in digits.budgets)
page.says("least squares spent eight times PPO's")
page.holds(round(total / spent) == 8, f"it is eight times, and not {total / spent:.1f}")
page.given("gained less than 0.01 in", "the rule by which it ends: mlx_tasks/rl/ppo.py")
page.given("8 and 12 evaluations, one seed", "what was asked for")
page.given("With 2,048 environment steps", "a setting")
page.given("within 100 episodes", "a goal")
