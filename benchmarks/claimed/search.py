"""The figures of docs/search.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/search.md")
result = page.result("search_samplers")
shares = {row["sampler"]: row for row in result["rows"]}
page.says(f"On a smooth cost model of {result['config']['architectures']} architectures")
page.says(
    f"mean of {shares['TPE']['seeds']} seeds: TPE {shares['TPE']['share']:.2f}, random choice "
    f"{shares['random']['share']:.2f}, NSGA-II {shares['NSGA-II']['share']:.2f}"
)
page.given("(0.5: up to one and a half times)", "a setting: search.max_quality_loss")
