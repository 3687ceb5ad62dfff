"""Stage `evaluate`: all slots' rows together, their latencies measured here, the sanity ladder, and the winner."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mlx_tasks.files import atomic_folder, atomic_write_bytes, atomic_write_text, write_json
from mlx_tasks.metrics.bench import Row
from mlx_tasks.metrics.candidates import Candidate, LeftOut
from mlx_tasks.metrics.drawing import Drawer, open_drawer
from mlx_tasks.metrics.entries import open_entries
from mlx_tasks.metrics.held_out import open_held_out
from mlx_tasks.metrics.ladder import check_ladder, deciding_metric
from mlx_tasks.metrics.parts import Parts, check_candidate, read_parts
from mlx_tasks.metrics.scalars import IMAGE_TEXT
from mlx_tasks.metrics.timing import LATENCY_REPEATS, timed_rows
from mlx_tasks.metrics.winner import choose_winner
from mlx_tasks.stages.context import StageContext


def run(context: StageContext) -> None:
    """Gather what the slots scored; write work/scores/, metrics/evaluate.json and plots/evaluate.csv (`dvc plots`).

    scores.json: `rows` (one a candidate or reference set), `winner` (metrics/winner.py), `sanity` (which
    metrics passed the ladder, metrics/ladder.py), `left_out` (combinations not
    scored, each with its reason), `setup` (what the numbers were measured with; `hardware` is the latencies', that of
    each slot stands under `scored_by`). Latencies are measured in one go, here: a second try measures all of them anew.

    Raises: DataError where parts are missing, or are not of one evaluation (metrics/parts.py).
    """
    config = context.config
    parts = read_parts(context.work, config.evaluate.slots)
    held_out = open_held_out(context.work, config)
    drawer = open_drawer(context.root, held_out, config.seed, context.hardware)
    entries = open_entries(context.root, config.evaluate, held_out, drawer, config.seed)
    candidates = [one for one in entries.candidates if one.name not in parts.left_out]
    scored = parts.in_order([*entries.references, *(one.name for one in candidates)])
    first = len(entries.references)
    for candidate, row in zip(candidates, scored[first:], strict=True):
        check_candidate(candidate, row, drawer.bundle(candidate.bundle).digest)
    rows = [*scored[:first], *_timed(context, candidates, scored[first:], drawer)]

    sanity = check_ladder(rows, _distrusted(parts))
    metric, why = deciding_metric(sanity)
    winner = choose_winner(rows, metric, sanity) | {"because": why}
    by_name = {candidate.name: candidate for candidate in candidates}
    best_teacher = min(
        (row for row in rows if row["kind"] == "teacher"),
        key=lambda row: row["metrics"]["frechet_distance"]["value"],
        default=None,
    )
    with atomic_folder(context.work / "scores") as fresh:
        for row in rows:
            atomic_write_bytes(fresh / "grids" / f"{row['candidate']}.png", parts.picture(row["candidate"]))
        strips = {"winner": winner["candidate"]} | ({"teacher": best_teacher["candidate"]} if best_teacher else {})
        for role, name in strips.items():
            atomic_write_bytes(fresh / "grids" / f"strip-{role}.png", drawer.strip(by_name[name]))
        write_json(
            fresh / "scores.json",
            {
                "rows": rows,
                "winner": winner,
                "teacher": best_teacher["candidate"] if best_teacher else None,
                "sanity": sanity,
                "left_out": [asdict(one) for one in (*entries.left_out, *_unscored(parts))],
                "setup": _setup(context, parts),
            },
        )
    flat = _figures(rows, winner, best_teacher)
    write_json(context.work / "metrics" / "evaluate.json", flat)
    atomic_write_text(context.work / "plots" / "evaluate.csv", plot_rows(rows))
    _record(context, rows, winner, flat)


def _distrusted(parts: Parts) -> dict[str, str]:
    """Metrics whose own model says that it tells nothing apart, with why."""
    why = parts.setup["image_text"].get("untrusted_because")
    return {IMAGE_TEXT: why} if why else {}


def _unscored(parts: Parts) -> list[LeftOut]:
    return [LeftOut(name, why) for name, why in parts.left_out.items()]


def _timed(context: StageContext, candidates: list[Candidate], rows: list[Row], drawer: Drawer) -> list[Row]:
    timed: list[Row] = []
    for row in timed_rows(candidates, rows, drawer, context.config.evaluate.latency_batch):
        timed.append(row)
        context.progress.update(
            len(timed), len(rows), "latencies", candidate=row["candidate"], latency_ms=row["latency_ms"]
        )
    return timed


def _setup(context: StageContext, parts: Parts) -> dict[str, Any]:
    """What the slots measured with, and where this machine comes in."""
    return parts.setup | {
        "latency_batch": context.config.evaluate.latency_batch,
        "latency_repeats": LATENCY_REPEATS,
        "hardware": context.hardware.as_dict(),
        "scored_by": parts.made,
    }


PLOTTED = ("frechet_distance", "kernel_distance", "precision", "recall")


def plot_rows(rows: list[Row]) -> str:
    """The candidates as CSV, one a row: name, kind, grid, cost, and each plotted metric with its interval."""
    import csv
    import io

    columns = [f"{metric}{end}" for metric in PLOTTED for end in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["candidate", "kind", "grid", "nfe", "latency_ms", "size_mb", *columns])
    for row in rows:
        if row["kind"] != "reference":
            told = [row["metrics"][metric][key] for metric in PLOTTED for key in ("value", "low", "high")]
            shown = [row[key] for key in ("candidate", "kind", "grid", "nfe", "latency_ms", "size_mb")]
            writer.writerow([*shown, *told])
    return text.getvalue()


def _figures(rows: list[Row], winner: dict[str, Any], best_teacher: Row | None) -> dict[str, dict[str, Any]]:
    """Plain numbers for `dvc metrics`: the winner's, the best teacher's, and each reference's."""

    def plain(row: Row) -> dict[str, Any]:
        figures = {name: estimate["value"] for name, estimate in row["metrics"].items()}
        extra = ("nfe", "steps", "parameters", "size_mb")
        return figures | {key: row[key] for key in extra if row["kind"] != "reference"}

    won = next(row for row in rows if row["candidate"] == winner["candidate"])
    figures = {"winner": plain(won)} | ({"teacher": plain(best_teacher)} if best_teacher else {})
    references = {row["candidate"].removeprefix("reference-"): plain(row) for row in rows if row["kind"] == "reference"}
    return figures | {"reference": references}


def _record(context: StageContext, rows: list[Row], winner: dict[str, Any], flat: dict[str, dict[str, Any]]) -> None:
    for group in ("winner", "teacher"):
        if group in flat:
            context.tracker.metrics({f"{group}/{key}": float(value) for key, value in flat[group].items()}, 0)
    for name, figures in flat["reference"].items():
        context.tracker.metrics({f"reference_{name}/{key}": float(value) for key, value in figures.items()}, 0)
    context.tracker.tags({"winner": winner["candidate"]})
    context.tracker.artifact(context.work / "scores", "scores")
    context.progress.say(
        f"winner {winner['candidate']} of {len(rows)} rows: Frechet distance "
        f"{flat['winner']['frechet_distance']:.4f} at {flat['winner']['nfe']} evaluations, "
        f"{flat['winner']['latency_ms']:.2f} ms an image"
    )
