"""The figures of docs/comparing.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/comparing.md")
speed = {row["case"]: row["mlx_steps_per_second"]["median"] for row in page.result("steps_per_second")["rows"]}
page.says(f"takes {speed['demo teacher, 16 px'] / speed['demo teacher, 8 px']:.2f} of the time (`steps_per_second.py`)")
page.given("at most 7 % of 300 runs at 95 %, paired or not", "tests/test_metrics_significance.py")
page.given("at most 2 % over the stored one", "a setting: registry/regression.py")
