"""The figures of docs/methods/stopping_early.md."""

from __future__ import annotations

from statistics import mean

from claim import Page
from schedule_tables import span

page = Page("docs/methods/stopping_early.md")
rows = page.result("quality_guided")["rows"]
stopped = [row for row in rows if "tolerance" in row]
early = [100 * row["too_early"] for row in stopped]
page.says(f"where 10 % may be stopped too early, {mean(early):.0f} % are on average over seeds and tolerances")
page.says(f"{span(early, 0)} % in single ones")
widest = [row for row in stopped if row["tolerance"] == 0.08]
fixed = [row["fixed"]["10"] for row in rows if "fixed" in row]
page.says(
    f"({span([row['oracle_error'] for row in widest], 3)} at {span([row['oracle_nfe'] for row in widest], 1)} "
    f"evaluations against {max(fixed):.3f} at ten)"
)
told = [one["expected"] for row in rows if "remaining" in row for one in row["remaining"]]
page.says(f"from {min(told):.2f} to {max(told):.1f}")
