"""The report's charts, each a function from the report's numbers to an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from mlx_tasks.report.svg import Axis, axis_over, element, frame, label, mark, number, picture, polyline

REFERENCE_NAMES = {
    "reference-real": "real images",
    "reference-held-out": "held-out images",
    "reference-noisy": "with grain",
    "reference-class-missing": "a class missing",
    "reference-gaussian": "pixel Gaussian",
    "reference-blurred": "blurred",
    "reference-noise": "noise",
}
"""What the reference sets are called in charts and tables."""

GRID_NAMES = {
    "uniform": "uniform",
    "log_snr": "log SNR",
    "karras": "Karras",
    "log_snr_tuned": "log SNR, tuned",
    "karras_tuned": "Karras, tuned",
    "remembered": "remembered",
    "shortest_path": "shortest path",
    "cma_es": "CMA-ES",
    "ppo": "PPO",
    "gradient_levels": "gradient, levels",
    "gradient": "gradient",
    "least_squares": "least squares",
    "own": "own",
}
"""What grids are called; tuned: with end points found by plain search."""


def grid_name(grid: str) -> str:
    """What people call a grid."""
    return GRID_NAMES.get(grid, grid)


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: for the legend.
        shape: of its marks (svg.MARKS).
        class_: its colour class, c0 to c5.
        points: mappings with x, y, low, high, title.
    """

    name: str
    shape: str
    class_: str
    points: tuple[dict[str, Any], ...]


def ruler_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Frechet distances on one logarithmic line each, the best first.

    rows: mappings with name, value, low, high and role ("winner", "teacher" or "reference").
    """
    rows = sorted(rows, key=lambda row: row["value"])
    height, left, right = 34 + 26 * len(rows) + 40, 150, 470
    ends = [v for row in rows for v in (row["value"], row["low"] or row["value"], row["high"] or row["value"])]
    x = axis_over([max(v, 1e-4) for v in ends], left, right, log=True)
    top, bottom = 20, 20 + 26 * len(rows)
    parts = []
    for value, text in x.ticks:
        parts.append(element("line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="grid"))
        parts.append(label(x(value), bottom + 17, text, anchor="middle"))
    for place, row in enumerate(rows):
        y = top + 26 * place + 13
        class_ = {"winner": "c1", "teacher": "c0"}.get(row["role"], "c5")
        shape = {"winner": "diamond", "teacher": "circle"}.get(row["role"], "bar")
        tip = f"{row['name']}: {interval(row)}"
        parts.append(label(left - 10, y + 4, row["name"], f"name role-{row['role']}", "end"))
        if row["low"] is not None:
            low = x(max(row["low"], x.low))
            parts.append(element("line", x1=low, x2=x(row["high"]), y1=y, y2=y, class_=f"whisker {class_}"))
        parts.append(mark(shape, x(max(row["value"], x.low)), y, class_, tip, 5.5))
        parts.append(label(right + 10, y + 4, number(row["value"]), f"value role-{row['role']}"))
    parts.append(
        label(
            (left + right) / 2, bottom + 36, "Frechet distance to held-out images (lower is better)", "title", "middle"
        )
    )
    return picture(540, height, parts, "Frechet distance of the winner, the teacher and the reference sets")


def quality_chart(
    series: Sequence[Series], references: Sequence[dict[str, Any]], nfe: Sequence[int], limits: tuple[float, float]
) -> str:
    """Frechet distance against network evaluations, both logarithmic, with reference lines.

    references: mappings with name and value. limits: ends of the vertical axis, shared by charts side by side.
    """
    x = axis_over(nfe, 56, 410, log=True, ticks=[(n, str(n)) for n in nfe])
    y = axis_over(limits, 300, 30, log=True)
    parts = [frame(x, y, "network evaluations an image (NFE)", "Frechet distance")]
    inside = [row for row in references if y.low < row["value"] < y.high]
    for row, place in zip(inside, _apart([y(row["value"]) for row in inside], 13), strict=True):
        line = y(row["value"])
        parts.append(element("line", x1=x.start, x2=x.end, y1=line, y2=line, class_="reference"))
        parts.append(label(x.end + 5, place + 4, row["name"], "reference-name"))
    for one in series:
        points = sorted(one.points, key=lambda p: p["x"])
        parts.append(polyline([(x(p["x"]), y(p["y"])) for p in points], f"series {one.class_}"))
        for p in points:
            if p["low"] is not None:
                low, high = y(max(p["low"], y.low)), y(min(p["high"], y.high))
                parts.append(
                    element("line", x1=x(p["x"]), x2=x(p["x"]), y1=low, y2=high, class_=f"whisker {one.class_}")
                )
        parts.extend(mark(one.shape, x(p["x"]), y(p["y"]), one.class_, p["title"]) for p in points)
    return picture(510, 345, parts, "Frechet distance against network evaluations")


def pareto_chart(trials: Sequence[dict[str, Any]], front: Sequence[int], chosen: int) -> str:
    """The search's trials: error against latency, bubbles as large as their peak memory, the front as a line.

    trials: mappings with number, error, latency_ms, peak_memory_mb, title.
    """
    x = axis_over([t["latency_ms"] for t in trials], 56, 470, zero=True)
    y = axis_over([t["error"] for t in trials], 290, 30)
    most = max(t["peak_memory_mb"] for t in trials)
    parts = [frame(x, y, "latency of one evaluation of a batch (ms)", "distance to the teacher's v (RMS)")]
    best = sorted((t for t in trials if t["number"] in front), key=lambda t: t["latency_ms"])
    steps: list[tuple[float, float]] = []
    for one, following in pairwise(best):
        steps.append((x(one["latency_ms"]), y(one["error"])))
        steps.append((x(following["latency_ms"]), y(one["error"])))
    steps.extend((x(one["latency_ms"]), y(one["error"])) for one in best[-1:])
    parts.append(polyline(steps, "front"))
    for t in sorted(trials, key=lambda t: -t["peak_memory_mb"]):
        place = x(t["latency_ms"]), y(t["error"])
        class_ = "c1" if t["number"] == chosen else "c0" if t["number"] in front else "c5"
        radius = 4 + 12 * (t["peak_memory_mb"] / most) ** 0.5
        tip = element("title", escape(t["title"]))
        parts.append(element("circle", cx=place[0], cy=place[1], r=radius, class_="under"))
        parts.append(element("circle", tip, cx=place[0], cy=place[1], r=radius, class_=f"bubble {class_}"))
        weight = "role-winner" if t["number"] == chosen else "tick"
        parts.append(label(place[0], place[1] + 4, str(t["number"]), f"{weight} inside", "middle"))
    return picture(510, 335, parts, "Error against latency of every architecture tried")


def grids_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Where each grid puts its steps in log SNR, and what error that gives, a line a grid.

    rows: mappings with grid, log_snr (numbers), error {value, low, high} and kept (bool).
    """
    height, left, right = 26 * len(rows) + 76, 122, 342
    x = axis_over([v for row in rows for v in row["log_snr"]], left, right)
    top, bottom = 26, 26 + 26 * len(rows)
    parts = [
        label(right + 14, 16, "error", "tick"),
        label(left, 16, "noise", "tick"),
        label(right, 16, "data", "tick", "end"),
    ]
    for value, text in x.ticks:
        parts.append(element("line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="grid"))
        parts.append(label(x(value), bottom + 17, text, anchor="middle"))
    for place, row in enumerate(rows):
        y = top + 26 * place + 13
        class_, role = ("c1", "role-winner") if row["kept"] else ("c0", "")
        parts.append(label(left - 10, y + 4, grid_name(row["grid"]), f"name {role}", "end"))
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="axis"))
        parts.extend(
            mark("diamond" if row["kept"] else "circle", x(v), y, class_, f"log SNR {number(v)}", 4.2)
            for v in row["log_snr"]
        )
        parts.append(label(right + 14, y + 4, interval(row["error"]), f"value {role}"))
    parts.append(label((left + right) / 2, bottom + 36, "log SNR at which the network is evaluated", "title", "middle"))
    return picture(552, height, parts, "Grids in log SNR, with their errors")


WITHOUT_SEARCH = ("uniform", "log_snr", "karras", "remembered")
LEARNED_STEPS = ("gradient", "least_squares")


def errors_chart(budgets: Sequence[dict[str, Any]]) -> str:
    """Error against network evaluations, both logarithmic: a line a method, named at its end.

    budgets: mappings with nfe and grids, those with grid, nfe, error {value, low, high} and kept (bool).
    Circles need no search, squares were searched or chosen by PPO, triangles are learned steps; what is kept is bold.
    """
    methods: dict[str, list[dict[str, Any]]] = {}
    for budget in budgets:
        for row in budget["grids"]:
            methods.setdefault(row["grid"], []).append(row)
    every = [row for rows in methods.values() for row in rows]
    nfe = sorted({row["nfe"] for row in every})
    x = axis_over(nfe, 56, 400, log=True, ticks=[(n, str(n)) for n in nfe])
    y = axis_over([row["error"][end] for row in every for end in ("low", "value", "high")], 330, 30, log=True)
    parts = [frame(x, y, "network evaluations an image (NFE)", "distance to the many-step result (RMS)")]
    ends = {name: max(rows, key=lambda row: row["nfe"]) for name, rows in methods.items()}
    places = _apart([y(row["error"]["value"]) for row in ends.values()], 13)
    for (name, rows), place in zip(methods.items(), places, strict=True):
        shape, class_ = ("circle", "c5") if name in WITHOUT_SEARCH else ("square", "c0")
        shape, class_ = ("triangle", "c1") if name in LEARNED_STEPS else (shape, class_)
        ordered = sorted(rows, key=lambda row: row["nfe"])
        points = [(x(row["nfe"]), y(row["error"]["value"])) for row in ordered]
        kept = any(row["kept"] for row in rows)
        parts.append(polyline(points, f"series {'thick ' * kept}{class_}"))
        for row, (across, down) in zip(ordered, points, strict=True):
            low, high = y(row["error"]["low"]), y(row["error"]["high"])
            parts.append(element("line", x1=across, x2=across, y1=low, y2=high, class_=f"whisker {class_}"))
            title = f"{grid_name(name)}, {row['nfe']} evaluations: {interval(row['error'])}"
            parts.append(mark(shape, across, down, class_, title, 5.6 if row["kept"] else 4.2))
        last, height = points[-1]
        if last < x.end - 8:
            parts.append(element("line", x1=last + 8, y1=height, x2=x.end + 4, y2=place, class_="grid"))
        parts.append(label(max(last, x.end - 8) + 16, place + 4, grid_name(name), f"name {'role-winner' * kept}"))
    return picture(540, 380, parts, "Error against network evaluations, by method")


def reward_chart(records: Sequence[dict[str, Any]]) -> str:
    """What PPO earned over its episodes: while exploring, by the likeliest actions, and the best so far.

    records: mappings with episodes, reward (None where no episode ended), greedy_reward and best_reward.
    """
    names = ("reward", "greedy_reward", "best_reward")
    x = Axis(0, max(record["episodes"] for record in records), 62, 490)
    y = axis_over([record[name] for record in records for name in names if record[name] is not None], 210, 30)
    parts = [frame(x, y, "episodes", "reward")]
    parts.extend(
        mark("circle", x(record["episodes"]), y(record["reward"]), "c5", f"{number(record['reward'])}", 2.6)
        for record in records
        if record["reward"] is not None
    )
    for name, class_ in (("greedy_reward", "series c0"), ("best_reward", "series thick c1")):
        parts.append(polyline([(x(record["episodes"]), y(record[name])) for record in records], class_))
    return picture(510, 255, parts, "Reward over PPO's episodes")


def legend_mark(shape: str, class_: str) -> str:
    """The mark of a series, for a legend."""
    return f'<svg class="key" viewBox="0 0 16 16" aria-hidden="true">{mark(shape, 8, 8, class_, size=4.6)}</svg>'


def interval(measured: dict[str, Any]) -> str:
    """`0.062 [0.051, 0.075]`, or the value alone where there is no interval."""
    if measured.get("low") is None:
        return number(measured["value"])
    return f"{number(measured['value'])} [{number(measured['low'])}, {number(measured['high'])}]"


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The same places pushed apart to at least `gap`, order kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved
