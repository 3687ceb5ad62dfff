"""The figures of docs/methods/gradients.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import Table, span

page = Page("docs/methods/gradients.md")
digits = Table(page.result("schedules"))
gains = [digits.mean("searched", n) / digits.mean("gradient", n) for n in digits.budgets]
more = [100 * (digits.mean("gradient", n) / digits.mean("least_squares", n) - 1) for n in digits.budgets]
page.says(
    f"On digits, three seeds: {span(gains, 1)} times less error than the best searched ends, {span(more, 0)} % more"
)
