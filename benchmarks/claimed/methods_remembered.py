"""The figures of docs/methods/remembered.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import listed

page = Page("docs/methods/remembered.md")
rows = page.result("ppo_episodes")["rows"]
even = [row["curve"] for row in rows if row["variant"] == "even"]
moved = [row["curve"] for row in rows if row["variant"] == "transfer"]
ends = [curve[-1] for curve in moved]
page.says(
    f"is at {listed([end[1] for end in ends], 2, ' and ')} of the searched grids' error after "
    f"{min(end[0] for end in ends)} to {max(end[0] for end in ends)} episodes"
)
ends = [curve[-1] for curve in even]
page.says(
    f"is at {listed([end[1] for end in ends], 2, ' and ')} after {min(end[0] for end in ends)} to "
    f"{max(end[0] for end in ends)}"
)
settings = [row for row in page.result("domain_detector")["rows"] if "error_of_unknowns_settings" in row]
worth = max(row["error_of_unknowns_settings"] / row["error"] for row in settings)
page.says(f"worth at most {100 * (worth - 1):.0f} % over settings for none")
