"""The figures of docs/distributed.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/distributed.md")
result = page.result("distributed")


def told(value: dict[str, float]) -> str:
    """Median with the lowest and the highest."""
    return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


for row in result["rows"]:
    page.says(f"| {row['batch_size']} | 1 | {told(row['ranks_1']['steps_per_second'])} | | |")
    for ranks in (2, 3):
        of = row[f"ranks_{ranks}"]
        sent, received = of["rank_0_sent_bytes_a_step"] / 1e6, of["rank_0_received_bytes_a_step"] / 1e6
        page.row(
            row["batch_size"],
            ranks,
            told(of["steps_per_second"]),
            told(of["speed_over_one_rank"]),
            f"{sent:.2f}, {received:.2f} MB",
        )
weights, config = result["rows"][0]["parameters"], result["config"]
page.says(f"the demo's teacher ({weights:,} weights)")
page.says(f"Gradients are 2 (n - 1) / n times {4 * weights / 1e6:.2f} MB each way")
page.says(f"the demo's network {4 * weights / 1e6:.1f} MB of gradients")
most = max(row["ranks_3"]["rank_0_sent_bytes_a_step"] for row in result["rows"])
page.says(f"At ten steps a second that is {10 * most / 1e6:.0f} MB/s at most")
page.says(f"(load {config['load_before']:.1f} before, {config['load_after']:.1f} after)")
grey, colour = 2 * 64 * 16 * 16 * 4 / 1e6, 2 * 64 * 64 * 64 * 3 * 4 / 1e6
page.says(f"64 images of 16 x 16 grey take {grey:.2f} MB with their noise")
page.says(f"at 64 x 64 colour, 64 images are {colour:.1f} MB")
page.given("ends by itself if MLX does not come back (10 s)", "a setting: mlx_tasks/hosts")
