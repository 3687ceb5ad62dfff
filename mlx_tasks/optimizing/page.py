"""What `mlx-tasks optimize` found, as one HTML file that opens from disk."""

from __future__ import annotations

import base64
import math
import re
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, select_autoescape
from markupsafe import Markup

from mlx_tasks.metrics.pictures import png_bytes, tile
from mlx_tasks.optimizing.optimizer import Optimizer, Outcome
from mlx_tasks.report.charts import errors_chart, grid_name, grids_chart, interval
from mlx_tasks.report.svg import number

NAMES = {"before": "the bundle's own steps, before", "many_steps": "very many steps"}


def render(optimizer: Optimizer, outcome: Outcome, told: dict[str, Any]) -> str:
    """HTML of an outcome: the verdict, errors by evaluations, where the steps lie, and images from the same noises.

    told: what the command prints as JSON.
    """
    environment = Environment(
        autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "interval": interval, "grid_name": grid_name}
    curve = [
        {"grid": row["method"], "nfe": row["nfe"], "error": _interval(row)}
        | {"kept": (row["method"], row["nfe"]) == (outcome.kept, outcome.best["nfe"])}
        for row in optimizer.curve()
    ]
    rows = sorted(outcome.rows.items(), key=lambda item: item[1]["error"])
    template = (files("mlx_tasks.optimizing") / "page.html.j2").read_text(encoding="utf-8")
    verdict = outcome.verdict
    for name in outcome.rows:
        verdict = re.sub(rf"\b{name}\b", grid_name(name), verdict)
    return environment.from_string(template).render(
        told=told,
        verdict=verdict[:1].upper() + verdict[1:],
        rows=[{"name": name, **row, "interval": _interval(row)} for name, row in rows],
        style=Markup((files("mlx_tasks.report") / "style.css").read_text(encoding="utf-8")),
        errors=Markup(errors_chart([{"grids": curve}])),
        grids=Markup(
            grids_chart(
                [
                    {"grid": name, "error": _interval(row), "kept": name == outcome.kept}
                    | {"log_snr": _log_snr(optimizer, row)}
                    for name, row in rows
                ]
            )
        ),
        shown=[
            {"name": NAMES.get(one.name, grid_name(one.name)), "nfe": one.nfe, "error": one.error}
            | {"picture": _picture(one.images)}
            for one in optimizer.shown(outcome)
        ],
        reference_steps=optimizer.reference_steps,
    )


def _interval(row: dict[str, Any]) -> dict[str, float]:
    return {"value": row["error"], "low": row["low"], "high": row["high"]}


def _log_snr(optimizer: Optimizer, row: dict[str, Any]) -> list[float]:
    """log SNR = -2 log(sigma) of the levels that a row's steps visit."""
    sigmas = row["learned"]["sigmas"] if row["learned"] else optimizer.bundle.schedule.sigmas[row["timesteps"]]
    return [-2.0 * math.log(sigma) for sigma in sigmas if sigma > 0]


def _picture(images: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(tile(images[None]))).decode("ascii")
