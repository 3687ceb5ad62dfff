"""The figures of docs/methods/cma_es.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import Table, listed, span

page = Page("docs/methods/cma_es.md")
digits = Table(page.result("schedules"))
gains = [digits.mean("searched", n) / digits.mean("cma_es", n) for n in digits.budgets]
page.says(
    f"On digits, three seeds: {listed(gains, 1, ' and ')} times less error than the best searched ends at 3 to 10"
)
guided = Table(page.result("schedules_guided"))
gains = [guided.mean("searched", n) / guided.mean("cma_es", n) for n in guided.budgets]
page.says(f"With guidance on (three seeds): {span(gains, 1)} times.")
patterns = Table(page.result("schedules_patterns_5"))
earlier = Table(page.result("schedules_patterns"))
lost = [100 * (1 - 1 / ratio) for table in (patterns, earlier) for ratio in table.all_ratios("searched", "cma_es")]
page.says(f"On colour patterns it gains little ({span(lost, 0)} %)")
