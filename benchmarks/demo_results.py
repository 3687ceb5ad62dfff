"""What did a demo run give?  Reads a run's workspace; writes the README's figures and its picture.

    make demo && python benchmarks/demo_results.py .state/workspaces/RUN

Rows are those of scores.json; `node_seconds` is what each stage's own process took. Ends with 1 where the run falls
below demo_floor.json, what a demo's scores must reach on any machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from record import ROOT, save

from mlx_tasks.files import read_json

PICTURE = ROOT / "docs" / "pictures" / "samples.png"
FLOOR = ROOT / "benchmarks" / "demo_floor.json"
KEPT = ("candidate", "kind", "nfe", "latency_ms", "size_mb", "parameters", "refused", "samples", "metrics")


def main() -> int:
    """Tell, draw, save; 1 below the floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path, help="the run's folder under .state/workspaces")
    workspace: Path = parser.parse_args().workspace
    scores = read_json(workspace / "work" / "scores" / "scores.json")
    rows = [{key: row.get(key) for key in KEPT} for row in scores["rows"]]
    seconds = {p.stem: read_json(p)["seconds"] for p in sorted((workspace / ".run" / "stages").glob("*.json"))}
    for row in sorted(rows, key=lambda r: r["metrics"]["frechet_distance"]["value"]):
        print(line(row, scores["winner"]["candidate"]))
    draw(workspace / "work" / "scores" / "grids", scores)
    config = {"setup": scores["setup"], "winner": scores["winner"], "node_seconds": seconds}
    config |= {"distilled": distilled(workspace), "tuned": tuned(workspace)}
    print(save("demo_results", question="What did a demo run give?", config=config, rows=rows))
    below = below_floor(rows, scores["winner"]["candidate"], read_json(FLOOR))
    print("\n".join(below) or "above the floor")
    return 1 if below else 0


def distilled(workspace: Path) -> list[dict[str, Any]]:
    """The many-step teacher and every student, as the distillation's own gate judged them."""
    table = read_json(workspace / "work" / "students" / "table.json")
    kept = ("name", "nfe", "frechet_distance", "accepted")
    return [{key: row.get(key) for key in kept} for row in (*table["teacher"], *table["students"])]


def tuned(workspace: Path) -> list[dict[str, Any]]:
    """Each way of choosing the steps: its distance to the many-step result, and whether it was kept."""
    kept = ("budget", "grid", "error", "kept")
    rows = read_json(workspace / "work" / "schedules" / "schedules.json")["rows"]
    return [{key: row[key] for key in kept} for row in rows]


def below_floor(rows: list[dict[str, Any]], winner: str, floor: dict[str, Any]) -> list[str]:
    """What the winner fails to reach, in words."""
    told = []
    won = next(row for row in rows if row["candidate"] == winner)
    if won["nfe"] > floor["nfe_at_most"]:
        told.append(f"the winner takes {won['nfe']} evaluations, and the floor is {floor['nfe_at_most']}")
    for metric, limit in floor["at_most"].items():
        if not won["metrics"][metric]["value"] <= limit:
            told.append(f"{metric} is {won['metrics'][metric]['value']:.3f}, and the floor is {limit}")
    for metric, limit in floor["at_least"].items():
        if not won["metrics"][metric]["value"] >= limit:
            told.append(f"{metric} is {won['metrics'][metric]['value']:.3f}, and the floor is {limit}")
    gaussian = next(row for row in rows if row["candidate"] == "reference-gaussian")["metrics"]
    if not won["metrics"]["frechet_distance"]["value"] < gaussian["frechet_distance"]["value"]:
        told.append("the winner is no better than a Gaussian of each class's pixels")
    return told


def line(row: dict[str, Any], winner: str) -> str:
    distance = row["metrics"]["frechet_distance"]
    cost = f"{row['nfe']:>3} NFE {row['latency_ms']:>6.1f} ms" if row["latency_ms"] else " " * 17
    mark = "  winner" if row["candidate"] == winner else "  refused" if row["refused"] else ""
    interval = f"({distance['low']:.3f} to {distance['high']:.3f})"
    return f"{row['candidate']:<36} {cost}  {distance['value']:.3f} {interval}{mark}"


def draw(grids: Path, scores: dict[str, Any]) -> None:
    """Sample grids of the best teacher sampler, the winner and real images, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {row["candidate"]: row for row in scores["rows"]}
    teacher, winner = scores["teacher"], scores["winner"]["candidate"]
    panels = {
        f"teacher: {rows[teacher]['nfe']} network evaluations": teacher,
        f"winner: {rows[winner]['nfe']} network evaluations": winner,
        "real images": "reference-real",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 5.4), dpi=130, facecolor="white")
    for axis, (title, name) in zip(axes, panels.items(), strict=True):
        axis.imshow(pyplot.imread(grids / f"{name}.png"), cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=12, loc="left", color="black")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(PICTURE)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
