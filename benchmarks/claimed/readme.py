"""The figures of README.md."""

from __future__ import annotations

from typing import Any

from claim import Page
from schedule_tables import Table, span

page = Page("README.md")
demo = page.result("demo_results")
config, rows = demo["config"], {row["candidate"]: row for row in demo["rows"]}
winner, best = config["winner"]["candidate"], config["winner"]["best"]


def distance(name: str) -> float:
    """A row's Frechet distance."""
    return rows[name]["metrics"]["frechet_distance"]["value"]


def cells(name: str) -> str:
    """Evaluations, milliseconds, distance with its interval."""
    row: dict[str, Any] = rows[name]
    value = row["metrics"]["frechet_distance"]
    cost = f"{row['nfe']} | {row['latency_ms']:.1f}" if row["latency_ms"] else "| "
    return f"{cost} | {value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def best_of(kind: str) -> str:
    """The row of a kind with the lowest distance."""
    return min((name for name, row in rows.items() if row["kind"] == kind), key=distance)


def line(label: str, name: str) -> None:
    """A line of the table."""
    page.says(" ".join(f"| {label} | {cells(name)} |".split()))


teacher, searched = best_of("teacher"), best_of("searched")
line(f"best teacher sampler of {rows[teacher]['nfe']} evaluations", teacher)
for name in (name for name, row in rows.items() if row["kind"] == "student"):
    steps = int(name.removeprefix("student-steps"))
    word = {1: "one step", 2: "two steps", 4: "four steps", 8: "eight steps"}[steps]
    mark = (
        ": **winner, champion**" if name == winner else ": refused by the distill gate" if rows[name]["refused"] else ""
    )
    line(f"student of {word}{mark}", name)
line(f"searched student, `{searched.removeprefix('searched-').rpartition('-')[0]}`", searched)
line("real images of the training split", "reference-real")
line("real images held out", "reference-held-out")
line("per-class pixel Gaussian", "reference-gaussian")
faster = rows[teacher]["latency_ms"] / rows[winner]["latency_ms"]
page.says(f"{faster:.1f} times as fast as the best teacher sampler of {rows[teacher]['nfe']} evaluations")
aside = rows[searched]["metrics"]
page.holds(searched in config["winner"]["set_aside"], "the searched student is set aside")
page.says(f"({aside['precision']['value']:.2f} against {rows[best]['metrics']['precision']['value']:.2f})")
told = 100 * aside["c2st_accuracy"]["value"], 100 * rows[best]["metrics"]["c2st_accuracy"]["value"]
page.says(f"{told[0]:.0f} % of the time ({told[1]:.0f} % for the best)")

digits = Table(page.result("schedules"))
page.says(
    f"{span(digits.ratios('searched', 'least_squares', 5), 1)} times at 5 steps and "
    f"{span(digits.ratios('searched', 'least_squares', 8), 1)} at 8"
)
few = [
    row["frechet_distance"]["value"]
    for row in page.result("few_steps_scores")["rows"]
    if row["sampler"] == "difference"
]
page.says(f"by {span([-value for value in few], 3)} in three seeds")

overhead = page.result("node_overhead")
page.says(f"{overhead['config']['wall_seconds'] / 60:.1f} minutes on {overhead['device']['cores']} cores")
page.says(f"A node costs {overhead['config']['overhead']['median']:.1f} s (median) beyond its own work")
page.says(f"(seed 0, {demo['device']['cores']} cores;")

speed = [row["torch_seconds_over_mlx_seconds"] for row in page.result("steps_per_second")["rows"]]
page.says(f"torch took {span([one['median'] for one in speed], 2)} of MLX's time")
lowest, highest = min(one["low"] for one in speed), max(one["high"] for one in speed)
page.says(f"single repeats from {lowest:.2f} to {highest:.2f}")
kernels = {
    row["form"]: row["forward_and_gradients"]["mlx_seconds_over_ours"]["median"]
    for row in page.result("cpu_kernels")["rows"]
}
page.holds(7 < kernels["strided convolution"] < 9, "a strided convolution takes 1/8")
page.holds(2.5 < kernels["silu"] < 3.5, "SiLU takes 1/3")
page.holds(
    all(1.7 < kernels[name] < 2.3 for name in ("group norm", "softmax", "attention")),
    "group norm, softmax and attention take about 1/2",
)

page.given("| Frechet distance (95 %) |", "the level: a setting")
page.given("than 5 % of fresh real ones are; about 0.05 is right", "a definition")
page.given("50 % is guessing", "a definition")
page.given("Intervals are 95 %.", "the level: a setting")
page.given("what a Frechet distance of 10,000 images takes", "what is asked")
page.given("CC BY 4.0", "a licence")
