"""The comparison as one HTML file that opens from disk."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

from mlx_tasks.report.charts import interval, legend_mark
from mlx_tasks.report.svg import axis_over, element, frame, mark, number, picture

SHAPES = ("circle", "diamond", "square", "triangle", "cross", "plus", "down", "ring")
AXES = {
    "nfe": "network evaluations an image (NFE)",
    "latency_ms": "ms an image",
    "size_mb": "size of the network (MiB)",
}


def render_page(found: dict[str, Any], pictures: Sequence[bytes | None]) -> str:
    """HTML of what `compare` gave; pictures: each run's samples as PNG, where they are kept."""
    style = Markup((files("mlx_tasks.report") / "style.css").read_text(encoding="utf-8"))
    return _template("page").render(found=found, style=style, body=render_body(found, pictures, 2))


def render_body(found: dict[str, Any], pictures: Sequence[bytes | None], level: int) -> Markup:
    """The comparison without a page around it, its headings at `level`: for the report of a run."""
    body = _template("body").render(
        found=found,
        heading=lambda deeper: f"h{level + deeper}",
        marks=[Markup(legend_mark(*_look(i))) for i in range(len(found["runs"]))],
        charts=[{"title": title, "svg": Markup(_scatter(found, key, title))} for key, title in AXES.items()],
        pictures=[_data_uri(data) for data in pictures],
    )
    return Markup(body)


def _template(name: str) -> Template:
    environment = Environment(
        autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "interval": interval, "short": short_name}
    return environment.from_string((files("mlx_tasks.comparison") / f"{name}.html.j2").read_text(encoding="utf-8"))


def short_name(name: str) -> str:
    """A run's name without the folders before it."""
    return name.rstrip("/").rpartition("/")[2]


def _scatter(found: dict[str, Any], key: str, title: str) -> str:
    """Frechet distance of every candidate of every comparable run against one of its costs, both logarithmic."""
    runs = [(i, run) for i, run in enumerate(found["runs"]) if run["comparable"]]
    points = [(i, row) for i, run in runs for row in run["candidates"] if row[key]]
    whole = [(n, str(n)) for n in sorted({row[key] for _, row in points})] if key == "nfe" else ()
    x = axis_over([row[key] for _, row in points], 56, 440, log=True, ticks=whole)
    y = axis_over([max(row["value"], 1e-3) for _, row in points], 300, 30, log=True)
    front = {tuple(pair) for pair in found["pareto"]}
    parts = [frame(x, y, title, "Frechet distance")]
    for i, row in points:
        run = found["runs"][i]
        won = row["candidate"] == run["winner"]["candidate"]
        if (run["name"], row["candidate"]) in front:
            parts.append(
                element(
                    "circle", cx=x(row[key]), cy=y(max(row["value"], 1e-3)), r=9.0, class_="whisker c0", fill="none"
                )
            )
        shape, class_ = _look(i)
        tip = f"{run['name']}: {row['candidate']}{' (winner)' if won else ''}, {interval(row)}, {number(row[key])}"
        parts.append(mark(shape, x(row[key]), y(max(row["value"], 1e-3)), class_, tip, 6.5 if won else 4.0))
    return picture(460, 345, parts, f"Frechet distance against {title}")


def _look(index: int) -> tuple[str, str]:
    return SHAPES[index % len(SHAPES)], f"c{(1, 0, 2, 3, 4, 5)[index % 6]}"


def _data_uri(data: bytes | None) -> str | None:
    return None if data is None else "data:image/png;base64," + base64.b64encode(data).decode("ascii")
