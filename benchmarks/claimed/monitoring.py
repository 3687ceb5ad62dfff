"""The figures of docs/monitoring.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/monitoring.md")
result = page.result("monitor_power")
rows = result["rows"]
calm = {row["reference"]: row for row in rows if row["degradation"] == "none"}
page.says(
    f"{calm['registered']['alerts']:.3f} of {calm['registered']['windows']} windows of {calm['registered']['count']} "
    f"fresh images raise an alert against the registered reference, {calm['drawn anew']['alerts']:.3f} of "
    f"{calm['drawn anew']['windows']} against references drawn anew for each"
)
page.says(f"level {result['config']['level']} (")
for name in dict.fromkeys(row["degradation"] for row in rows if row["degradation"] != "none"):
    of = {row["count"]: row for row in rows if row["degradation"] == name}
    told = ", ".join(f"`{one}`" for one in of[240]["told_by"]) or "–"
    page.row(name, *(f"{of[count]['alerts']:.1f}" for count in (60, 120, 240)), told)
page.holds(
    all(row["alerts"] == 0 for row in rows if row["degradation"] in ("weights + 2 % noise", "weights + 5 % noise")),
    "noise of 2 and 5 % is not noticed",
)
page.given("Noise of 2 and 5 % of the weights", "what was tried")
page.given("from 1.5 times the registered Frechet distance on", "a rule: mlx_tasks/monitoring/alerts.py")
page.given("more than 50 images a second for long", "a limit: mlx_tasks/monitoring/window.py")
page.given("from 4 times on", "a rule: mlx_tasks/monitoring/alerts.py")
page.given("a body may have 8 MiB", "a limit: tests/test_alert_receiver.py")
