"""Stage `report`: the run as one HTML file, and the same numbers as JSON beside it."""

from __future__ import annotations

from mlx_tasks.files import atomic_folder, atomic_write_text, write_json
from mlx_tasks.report.collect import collect
from mlx_tasks.report.render import render
from mlx_tasks.stages.context import StageContext


def run(context: StageContext) -> None:
    """Write work/report/report.html and report.json from what the other stages left."""
    report = collect(context.root)
    page = render(report, context.work / "scores" / "grids", context.work / "registered" / "comparison")
    with atomic_folder(context.work / "report") as fresh:
        write_json(fresh / "report.json", report)
        atomic_write_text(fresh / "report.html", page)
    context.tracker.artifact(context.work / "report", "")
    for part in report["missing"]:
        context.progress.say(f"without {part['part']}: {part['file']} of stage {part['stage']} is not there")
    for sentence in report["sentences"]:
        context.progress.say(sentence)
    context.progress.say(f"open {context.work / 'report' / 'report.html'}")
