"""The figures of docs/serving.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/serving.md")
rows = page.result("serving_load")["rows"]
for clients in (1, 4, 16, 64):
    batched, alone = (
        next(row for row in rows if (row["clients"], row["server"]) == (clients, server))
        for server in ("batched", "one at a time")
    )
    ratio = batched["throughput_ratio"]
    page.row(
        clients,
        *(f"{row['images_per_s']['median']:.1f}" for row in (batched, alone)),
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        *(
            " / ".join(f"{round(row[key]['median'] + 1e-9)}" for key in ("p50_ms", "p95_ms", "p99_ms"))
            for row in (batched, alone)
        ),
    )
page.given("(features within 5 % of their spread)", "a rule: mlx_tasks/serving/checks.py")
page.given("at level 0.005", "a rule: mlx_tasks/serving/deploy.py")
page.given("256 KiB of a body or 2 s", "a setting: mlx_tasks/serving")
page.given("15 s to the first byte", "a setting")
