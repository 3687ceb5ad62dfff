"""The figures of docs/methods/plain_search.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import Table, listed

page = Page("docs/methods/plain_search.md")
digits = Table(page.result("schedules"))
page.says(
    f"On digits, three seeds: {listed([digits.mean('log_snr_tuned', n) for n in digits.budgets], 3, ' and ')} at 3,"
)
page.given("48 tries come within 5 % of it", "tests/test_rl_learning.py holds it against brute force")
for n in digits.budgets:
    default = min(digits.mean(grid, n) for grid in ("uniform", "log_snr", "karras"))
    page.holds(digits.mean("log_snr_tuned", n) < 0.56 * default, f"it is about half of the best default at {n} steps")
