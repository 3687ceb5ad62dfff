"""The comparison itself, as plain values: the same for the terminal, the page and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_tasks.comparison.records import RunRecord
from mlx_tasks.errors import DataError
from mlx_tasks.metrics.ladder import HIGHER_IS_BETTER
from mlx_tasks.metrics.significance import difference_of_intervals

CONDITIONS = ("dataset", "samples", "resolution", "channels", "classes", "feature_space")
"""What must be equal for scores to compare; seeds may differ, since the intervals cover them."""
EMBEDDED = ("embedded_space",)
"""And for the scores in learned features."""
LATENCY = ("chip", "kind", "threads")
"""And for milliseconds."""


def compare(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Everything that is shown of two or more runs; each is held against the first.

    runs: name, source, winner, teacher, candidates, comparable (measured under the first's conditions); metrics: one
    row a metric of any winner, with each run's score and a word against the first run ("better", "worse", "inside the
    noise", or why they do not compare); pareto: the (run, candidate) pairs that no other one beats in Frechet distance
    and latency at once, among comparable runs;
    params, data: what changed, each value by run; per_class: class -> each run's score.
    Raises: DataError for fewer than two runs.
    """
    if len(records) < 2:
        raise DataError(f"a comparison needs at least two runs, got {len(records)}")
    first = records[0]
    names = list(dict.fromkeys(name for record in records for name in record.winner["metrics"]))
    return {
        "runs": [_run(record) | {"comparable": not _differing(first, record, CONDITIONS)} for record in records],
        "metrics": [_metric(name, records) for name in names],
        "pareto": _pareto([r for r in records if not _differing(first, r, (*CONDITIONS, *LATENCY))]),
        "params": _changes([record.params for record in records]),
        "data": _changes([_data(record) for record in records]),
        "per_class": _per_class(records),
    }


def _run(record: RunRecord) -> dict[str, Any]:
    rows = [row for row in record.scores["rows"] if row["kind"] != "reference"]
    keys = ("candidate", "kind", "nfe", "latency_ms", "size_mb", "parameters", "refused")
    candidates = [{**{k: row.get(k) for k in keys}, **row["metrics"]["frechet_distance"]} for row in rows]
    return {
        "name": record.name,
        "source": record.source,
        "winner": {k: record.winner.get(k) for k in (*keys, "metrics")},
        "teacher": {k: record.teacher.get(k) for k in (*keys, "metrics")} if record.teacher else None,
        "candidates": candidates,
        "rule": record.scores["winner"]["rule"],
    }


def _metric(name: str, records: Sequence[RunRecord]) -> dict[str, Any]:
    first, cells = records[0], []
    for record in records:
        score = record.winner["metrics"].get(name)
        cells.append({"score": score, **_verdict(name, first, record)})
    return {"metric": name, "higher_is_better": name in HIGHER_IS_BETTER or name == "images_per_second", "runs": cells}


def _verdict(name: str, first: RunRecord, other: RunRecord) -> dict[str, Any]:
    """{word, why, difference} of a run's winner against the first run's."""
    blank: dict[str, Any] = {"word": "", "why": "", "difference": None}
    if other is first:
        return blank
    a, b = other.winner["metrics"].get(name), first.winner["metrics"].get(name)
    if a is None or b is None:
        return blank | {"word": "not measured"}
    differing = _differing(first, other, _conditions(name))
    if differing:
        return blank | {"word": "not comparable", "why": f"other {', '.join(differing).replace('_', ' ')}"}
    for record in (first, other):
        if not (record.scores.get("sanity") or {}).get(name, {"trusted": True})["trusted"]:
            return blank | {"word": "not trusted", "why": f"failed the sanity ladder in {record.name}"}
    if a["low"] is None or b["low"] is None:
        return blank | {"word": "no interval"}
    found = difference_of_intervals(
        (a["value"], a["low"], a["high"]),
        (b["value"], b["low"], b["high"]),
        higher_is_better=name in HIGHER_IS_BETTER or name == "images_per_second",
    )
    return {"word": found.verdict, "why": "", "difference": found.as_dict()}


def _conditions(metric: str) -> tuple[str, ...]:
    if metric in ("latency_ms", "images_per_second"):
        return (*LATENCY, "latency_batch")
    return CONDITIONS + (EMBEDDED if metric.endswith("_embedded") else ())


def _differing(a: RunRecord, b: RunRecord, keys: Sequence[str]) -> list[str]:
    def value(record: RunRecord, key: str) -> Any:
        setup = record.scores["setup"]
        return (setup.get("hardware") or {}).get(key) if key in LATENCY else setup.get(key)

    return [key for key in keys if value(a, key) != value(b, key)]


def _pareto(records: Sequence[RunRecord]) -> list[list[str]]:
    points = [
        (record.name, row["candidate"], row["metrics"]["frechet_distance"]["value"], row["latency_ms"])
        for record in records
        for row in record.scores["rows"]
        if row["kind"] != "reference" and not row["refused"]
    ]
    return [
        [run, candidate]
        for run, candidate, distance, latency in points
        if not any(d <= distance and t <= latency and (d, t) != (distance, latency) for _, _, d, t in points)
    ]


def _changes(trees: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{key, values}] of the keys that do not have one value in all runs; None where a run does not say."""
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    rows = [{"key": key, "values": [tree.get(key) for tree in trees]} for key in keys]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _data(record: RunRecord) -> dict[str, Any]:
    setup = record.scores["setup"]
    told = {"fingerprint": setup.get("dataset"), "test images": setup.get("test_images"), "classes": setup["classes"]}
    return told | {key: value for key, value in record.dataset.items() if not isinstance(value, (dict, list))}


def _per_class(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    tables = [record.winner.get("per_class") or {} for record in records]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [{"class": name, "runs": [table.get(name) for table in tables]} for name in names]
