"""The report's numbers and pictures as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, select_autoescape
from markupsafe import Markup

from mlx_tasks.comparison.earlier import read_comparison
from mlx_tasks.comparison.page import render_body
from mlx_tasks.metrics.pictures import first_of_rows
from mlx_tasks.report import charts
from mlx_tasks.report.charts import REFERENCE_NAMES, Series, grid_name
from mlx_tasks.report.glossary import GLOSSARY
from mlx_tasks.report.svg import number

TEACHER_SERIES = {
    ("ddim", "uniform"): ("teacher, DDIM, uniform", "circle", "c0"),
    ("dpmpp_2m", "log_snr"): ("teacher, DPM-Solver++(2M), log SNR", "square", "c2"),
    ("dpmpp_2m", "karras"): ("teacher, DPM-Solver++(2M), Karras", "triangle", "c3"),
}
GRID_MARKS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down", "ring")
GRID_CLASSES = ("c0", "c2", "c3", "c1", "c4", "c5", "c0", "c2")


def render(report: dict[str, Any], pictures: Path, comparison: Path) -> str:
    """HTML of `report` (report/collect.py).

    pictures: the folder of the evaluate stage's PNG files; comparison: that of comparison/earlier.py.
    """
    environment = Environment(
        autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "interval": charts.interval,
        "duration": duration,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "percent": lambda value: f"{number(100 * value)} %",
    }
    folder = files("mlx_tasks.report")
    template = environment.from_string((folder / "template.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        charts=_charts(report),
        comparison=_comparison(report, comparison),
        picture=lambda name: _data_uri(pictures / f"{name}.png"),
        same_noise=_same_noise(report, pictures),
        glossary=GLOSSARY,
        reference_names=REFERENCE_NAMES,
        grid_name=grid_name,
    )


def _same_noise(report: dict[str, Any], pictures: Path) -> list[dict[str, Any]]:
    """[{nfe, rows: [{name, frechet_distance, picture}]}]: what each schedule makes of the same noises."""
    scores = report["scores"]
    found: dict[int, list[dict[str, Any]]] = {}
    for row in scores["rows"] if scores else []:
        path = pictures / f"{row['candidate']}.png"
        if row["kind"] != "searched" or not path.is_file():
            continue
        strip = first_of_rows(path.read_bytes(), scores["setup"]["resolution"])
        if strip is not None:
            told = {"name": grid_name(row["grid"]), "frechet_distance": row["metrics"]["frechet_distance"]}
            found.setdefault(row["nfe"], []).append({**told, "picture": _as_uri(strip)})
    return [
        {"nfe": nfe, "rows": sorted(rows, key=lambda row: row["frechet_distance"]["value"])}
        for nfe, rows in sorted(found.items())
    ]


def _comparison(report: dict[str, Any], folder: Path) -> Markup | None:
    """This run beside earlier ones, or None where there are none."""
    if not report["comparison"] or not report["comparison"]["found"]:
        return None
    kept = read_comparison(folder)
    return render_body(kept.found or {}, kept.pictures, 3)


def duration(seconds: float | None) -> str:
    """`4.2 s`, `1 min 05 s`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _charts(report: dict[str, Any]) -> dict[str, Any]:
    """Name -> SVG (or None where its numbers are missing)."""
    made: dict[str, Any] = {"ruler": None, "quality": [], "pareto": None, "grids": [], "errors": None, "rewards": None}
    if report["scores"]:
        made["ruler"] = Markup(charts.ruler_chart(_ruler_rows(report)))
        made["quality"] = _quality_charts(report)
    if report["search"]:
        made["pareto"] = Markup(_pareto(report["search"]))
    if report["schedules"]:
        made["grids"] = [
            {
                "nfe": budget["nfe"],
                "verdict": budget["verdict"],
                "svg": Markup(charts.grids_chart(budget["grids"])),
            }
            for budget in report["schedules"]["budgets"]
        ]
        if len(report["schedules"]["budgets"]) > 1:
            made["errors"] = Markup(charts.errors_chart(report["schedules"]["budgets"]))
        if len(report["schedules"]["rewards"]) > 1:
            made["rewards"] = Markup(charts.reward_chart(report["schedules"]["rewards"]))
            made["reward_legend"] = [
                {"mark": Markup(charts.legend_mark(shape, class_)), "name": name}
                for shape, class_, name in (
                    ("circle", "c5", "episodes while exploring"),
                    ("dash", "c0", "likeliest actions, on other noises"),
                    ("dash", "c1", "best so far, which is kept"),
                )
            ]
    return made


def _ruler_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"name": one["name"], "role": "reference", **one["metrics"]["frechet_distance"]}
        for one in report["references"].values()
    ]
    for role in ("teacher", "winner"):
        row = report[role]
        if row and not (role == "teacher" and report["winner"] and row["candidate"] == report["winner"]["candidate"]):
            name = "the winner" if role == "winner" else "best teacher"
            rows.append({"name": name, "role": role, **row["metrics"]["frechet_distance"]})
    return rows


def _quality_charts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Two charts with one vertical axis: teacher and students; the searched student by grid."""
    rows = [row for row in report["scores"]["rows"] if row["kind"] != "reference"]
    references = [
        {"name": one["name"], "value": one["metrics"]["frechet_distance"]["value"]}
        for one in report["references"].values()
    ]
    distances = [row["metrics"]["frechet_distance"] for row in rows]
    ends = [max(v, 1e-3) for d in distances for v in (d["value"], d["high"])]
    real = report["references"].get("reference-real")
    if real:
        ends.append(max(1e-3, real["metrics"]["frechet_distance"]["value"]))
    nfe = sorted({row["nfe"] for row in rows})
    left = [
        Series(
            name,
            shape,
            class_,
            tuple(_point(r) for r in rows if r["kind"] == "teacher" and (r["solver"], r["grid"]) == key),
        )
        for key, (name, shape, class_) in TEACHER_SERIES.items()
    ]
    left.append(Series("students", "diamond", "c1", tuple(_point(r) for r in rows if r["kind"] == "student")))
    grids = list(dict.fromkeys(row["grid"] for row in rows if row["kind"] == "searched"))
    right = [
        Series(
            f"searched, {grid_name(grid)}",
            shape,
            class_,
            tuple(_point(r) for r in rows if r["kind"] == "searched" and r["grid"] == grid),
        )
        for grid, shape, class_ in zip(grids, GRID_MARKS, GRID_CLASSES, strict=False)
    ]
    made = []
    for title, series in (("Teacher and students", left), ("Searched student, by grid", right)):
        series = [one for one in series if one.points]
        if series:
            svg = charts.quality_chart(series, references, nfe, (min(ends), max(ends)))
            legend = [{"mark": Markup(charts.legend_mark(one.shape, one.class_)), "name": one.name} for one in series]
            made.append({"title": title, "svg": Markup(svg), "legend": legend})
    return made


def _point(row: dict[str, Any]) -> dict[str, Any]:
    found = row["metrics"]["frechet_distance"]
    title = f"{row['candidate']}: {charts.interval(found)}, {number(row['latency_ms'])} ms an image"
    return {"x": row["nfe"], "y": max(found["value"], 1e-3), "low": found["low"], "high": found["high"], "title": title}


def _pareto(search: dict[str, Any]) -> str:
    trials = [
        {
            "number": trial["number"],
            **trial["values"],
            "title": f"trial {trial['number']}: error {number(trial['values']['error'])}, "
            f"{number(trial['values']['latency_ms'])} ms, {number(trial['values']['peak_memory_mb'])} MiB; "
            + ", ".join(f"{key} {value}" for key, value in trial["architecture"].items()),
        }
        for trial in search["trials"]
        if trial["values"]
    ]
    return charts.pareto_chart(trials, search["front"], search["chosen"]["number"])


def _data_uri(path: Path) -> str | None:
    if not path.is_file():
        return None
    return _as_uri(path.read_bytes())


def _as_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
