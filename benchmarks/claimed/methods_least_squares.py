"""The figures of docs/methods/least_squares.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import Table, hundreds, listed, span

page = Page("docs/methods/least_squares.md")
digits, guided = Table(page.result("schedules")), Table(page.result("schedules_guided"))
patterns, earlier = Table(page.result("schedules_patterns_5")), Table(page.result("schedules_patterns"))


def less(table: Table, n: int, places: int = 1) -> str:
    """Times less error than the best searched ends, by seed."""
    return listed(table.ratios("searched", "least_squares", n), places, " and ")


page.says(f"digits {less(digits, 5)} at 5 steps and {less(digits, 8)} at 8")
page.says(f"with guidance 1.5 it is {less(guided, 5, 2)} at 5 and {less(guided, 8)} at 8")
page.says(
    f"colour patterns of 24 pixels {less(patterns, 5, 2)} at 5 and, with two older outputs, {less(earlier, 8)} at 8"
)
page.says(f"At 3 steps {span(digits.ratios('searched', 'least_squares', 3), 1)}")
differences = sorted(
    (
        row["frechet_distance"]["value"]
        for row in page.result("few_steps_scores")["rows"]
        if row["sampler"] == "difference"
    ),
    reverse=True,
)
page.says(f"(paired Frechet differences of {differences[0]:.3f} to {differences[-1]:.3f}, three seeds)")
before = Table(page.result("schedules_guided_5"))
now, then = (
    ", ".join(hundreds(spent) for spent in table.spent_by_seed("least_squares", 5)) for table in (guided, before)
)
page.says(f"at 5 guided steps {now} evaluations, three seeds, where `schedules_guided_5.json`, from before, has {then}")
by_class = [row["mean_errors_by_class"]["8"] for row in page.result("steps_by_class")["rows"] if "log_spread" in row]
errors = sorted((sum(row) / len(row) for row in by_class), reverse=True)
page.says(f"({errors[0]:.3f} against {errors[2]:.3f} and {errors[1]:.3f}, `steps_by_class.py`)")
page.given("gains less than 2 %", "the rule that was dropped")
