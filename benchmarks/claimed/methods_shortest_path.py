"""The figures of docs/methods/shortest_path.md."""

from __future__ import annotations

from claim import Page
from schedule_tables import Table

page = Page("docs/methods/shortest_path.md")
digits = Table(page.result("schedules"))
path, default = digits.mean("shortest_path", 5), digits.mean("log_snr", 5)
page.says(f"On digits it beats the default grids everywhere ({path:.3f} at 5 steps against {default:.3f})")
for n in digits.budgets:
    best = min(digits.mean(grid, n) for grid in ("uniform", "log_snr", "karras"))
    page.holds(digits.mean("shortest_path", n) < best, f"it beats the default grids at {n} steps")
path, ends = digits.mean("shortest_path", 10), digits.mean("searched", 10)
page.says(f"only at ten steps ({path:.4f} against {ends:.4f})")
