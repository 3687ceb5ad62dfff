"""The report's numbers, gathered from what the stages left; what is not there is named, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_tasks.catalog import STAGES
from mlx_tasks.files import read_json
from mlx_tasks.report.advice import advice
from mlx_tasks.report.charts import REFERENCE_NAMES, grid_name

SOURCES = {
    "scores": ("work/scores/scores.json", "evaluate"),
    "distill": ("work/students/table.json", "distill"),
    "search": ("work/search/study/pareto.json", "search_select"),
    "schedules": ("work/schedules/schedules.json", "tune"),
    "verdict": ("work/registered/verdict.json", "register"),
    "lineage": ("work/registered/bundle/lineage.json", "register"),
    "comparison": ("work/registered/comparison/comparison.json", "register"),
    "data": ("work/metrics/validate.json", "validate"),
    "training": ("work/metrics/train.json", "train"),
}
"""Part of the report -> (file, the stage that writes it)."""


def collect(root: Path) -> dict[str, Any]:
    """Everything the report shows, as plain JSON values.

    Parts: run, winner, teacher, references, scores, distill, search, schedules, verdict, data, training, nodes,
    sentences (the result in words), missing (what could not be found, and which stage writes it).
    """
    found: dict[str, Any] = {}
    missing = []
    for part, (name, stage) in SOURCES.items():
        try:
            found[part] = read_json(root / name)
        except (OSError, ValueError) as error:
            found[part] = None
            missing.append({"part": part, "file": name, "stage": stage, "reason": type(error).__name__})
    rows = {row["candidate"]: row for row in (found["scores"] or {}).get("rows", [])}
    winner = rows.get(((found["scores"] or {}).get("winner") or {}).get("candidate"))
    teacher = rows.get((found["scores"] or {}).get("teacher"))
    report = {
        "run": _run(root, found),
        "winner": winner,
        "teacher": teacher,
        "ladder": _ladder(found["scores"]),
        "references": {
            name: {"name": REFERENCE_NAMES.get(name, name), "metrics": row["metrics"]}
            for name, row in rows.items()
            if row["kind"] == "reference"
        },
        **{part: found[part] for part in ("scores", "distill", "search", "verdict", "comparison", "data", "training")},
        "schedules": schedules_section(found["schedules"], root) if found["schedules"] else None,
        "nodes": _nodes(root),
        "missing": missing,
    }
    report["sentences"] = sentences(report)
    return report


def _ladder(scores: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One row a metric that was put to the sanity ladder: its values by reference set, and whether it is trusted."""
    if not scores:
        return []
    sets = {row["candidate"]: row["metrics"] for row in scores["rows"] if row["kind"] == "reference"}
    return [
        {
            "metric": metric,
            **judged,
            "values": {name: metrics.get(metric, {}).get("value") for name, metrics in sets.items()},
        }
        for metric, judged in (scores.get("sanity") or {}).items()
    ]


def sentences(report: dict[str, Any]) -> list[str]:
    """The result in words, each sentence from numbers of the report."""
    told: list[str] = []
    winner, teacher, verdict = report["winner"], report["teacher"], report["verdict"]
    if winner:
        distance = winner["metrics"]["frechet_distance"]
        told.append(
            f"{winner['candidate']} wins: {winner['nfe']} network evaluations and {winner['latency_ms']:.2f} ms "
            f"an image, at a Frechet distance of {distance['value']:.3f} "
            f"({distance['low']:.3f} to {distance['high']:.3f})."
        )
        real = report["references"].get("reference-real")
        gaussian = report["references"].get("reference-gaussian")
        if real and gaussian:
            told.append(
                f"Real images of the training split score {real['metrics']['frechet_distance']['value']:.3f} by the "
                f"same ruler, a per-class pixel Gaussian {gaussian['metrics']['frechet_distance']['value']:.3f}."
            )
    if winner and teacher and winner["candidate"] != teacher["candidate"]:
        theirs = teacher["metrics"]["frechet_distance"]
        times = teacher["latency_ms"] / winner["latency_ms"]
        ratio = f"{times:.1f} times as fast as" if times >= 1 else f"{1 / times:.1f} times slower than"
        told.append(
            f"The winner is {ratio} the best teacher sampler ({teacher['candidate']}: {teacher['nfe']} evaluations, "
            f"{teacher['latency_ms']:.2f} ms, {theirs['value']:.3f})."
        )
    if report["schedules"]:
        told.append(report["schedules"]["verdict"])
    distrusted = [row["metric"] for row in report["ladder"] if not row["trusted"]]
    if distrusted:
        told.append(f"Not to be trusted on this dataset: {', '.join(distrusted).replace('_', ' ')} (sanity ladder).")
    if verdict:
        told.append(
            "The gate passed it."
            if verdict["passed"]
            else "The gate refused it: " + "; ".join(verdict["reasons"]) + "."
        )
    return told + advice(winner, teacher, report["references"], report["training"])


def schedules_section(raw: dict[str, Any], root: Path) -> dict[str, Any]:
    """schedules.json as the report draws it: budgets with their grids (log SNR, error), a verdict in words, rewards."""
    log_snr = _log_snr(root)
    budgets = []
    for budget, judged in raw["budgets"].items():
        grids = [
            {
                "grid": row["grid"],
                "nfe": row["nfe"],
                "solver": row["solver"],
                "timesteps": row["timesteps"],
                "log_snr": _log_snr_of(row["learned"]["sigmas"]) if row.get("learned") else log_snr(row["timesteps"]),
                "error": {"value": row["error"], "low": row["low"], "high": row["high"]},
                "learning_evaluations": row["learning_evaluations"],
                "learning_seconds": row["learning_seconds"],
                "kept": row["kept"],
            }
            for row in raw["rows"]
            if row["budget"] == int(budget)
        ]
        kept = {key: judged[key] for key in ("kept", "rival", "difference", "verdict")}
        budgets.append({"nfe": int(budget), "grids": grids, **kept})
    return {
        "budgets": sorted(budgets, key=lambda budget: budget["nfe"]),
        "verdict": _schedule_verdict(budgets),
        "reference": raw["reference"],
        "noises": raw["noises"],
        "rewards": [
            {key: record[key] for key in ("episodes", "reward", "greedy_reward", "best_reward")}
            for record in raw["rewards"]
        ],
    }


def _log_snr_of(sigmas: Sequence[float]) -> list[float]:
    """log SNR = -2 log(sigma) of noise levels, the final 0 left out."""
    import math

    return [-2.0 * math.log(sigma) for sigma in sigmas if sigma > 0]


def _schedule_verdict(budgets: Sequence[dict[str, Any]]) -> str:
    """Which steps are kept where, and how much less error they have than the best plain search, in one sentence."""
    told = []
    for budget in sorted(budgets, key=lambda one: one["nfe"]):
        errors = {row["grid"]: row["error"]["value"] for row in budget["grids"]}
        searched = [value for name, value in errors.items() if name.endswith("_tuned")]
        text = f"{grid_name(budget['kept'])} at {budget['nfe']}"
        if searched and budget["kept"] in errors and not budget["kept"].endswith("_tuned"):
            text += f" ({min(searched) / errors[budget['kept']]:.2f} times less error than searched end points)"
        told.append(text)
    return f"Steps kept, by network evaluations: {'; '.join(told)}."


def _log_snr(root: Path) -> Callable[[Sequence[int]], list[float]]:
    """Timesteps -> log SNR = -2 log(sigma) of the registered model's noise schedule (the cosine where none is)."""
    import numpy as np

    from mlx_tasks.diffusion.schedule import NoiseSchedule

    path = root / "work" / "registered" / "bundle" / "scheduler" / "scheduler_config.json"
    schedule = NoiseSchedule.from_config(read_json(path)) if path.is_file() else NoiseSchedule.cosine()
    return lambda timesteps: [float(v) for v in -2 * np.log(schedule.sigma_from_t(np.array(timesteps)))]


def _run(root: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the run was: from the lineage, else from what the scores were measured with."""
    lineage, setup = found["lineage"] or {}, (found["scores"] or {}).get("setup", {})
    dataset = lineage.get("dataset") or {}
    return {
        "name": lineage.get("run"),
        "commit": (lineage.get("code") or {}).get("commit"),
        "dirty": (lineage.get("code") or {}).get("dirty"),
        "params_digest": lineage.get("params_digest"),
        "params": lineage.get("params"),
        "dataset": {
            "name": dataset.get("name"),
            "path": dataset.get("path"),
            "fingerprint": dataset.get("fingerprint") or setup.get("dataset"),
        },
        "device": lineage.get("device") or setup.get("hardware"),
        "versions": lineage.get("versions"),
    }


def _nodes(root: Path) -> list[dict[str, Any]]:
    """What each stage but this one took, in the chain's order: target, seconds, cached, exit_code, peak_memory_mb."""
    records = []
    for path in (root / ".run" / "stages").glob("*.json"):
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        if path.stem != "report" and (record.get("seconds") is not None or record.get("cached")):
            keys = ("seconds", "exit_code", "peak_memory_mb")
            kept = {key: record.get(key) for key in keys} | {"cached": bool(record.get("cached"))}
            records.append({"target": record["target"]} | kept)
    return sorted(records, key=lambda record: _place(record["target"]))


def _place(target: str) -> tuple[int, str, list[int]]:
    """Where a target stands: the stage's row in the catalog, plans beside their generation's trials, slots in order."""
    stage, _, values = target.partition("@")
    slot = [int(value) for value in values.split("-") if value.isdigit()]
    generation = values[:1]
    if stage.startswith("search_plan_"):
        stage, generation = "search_plan", stage[-1]
    order = list(STAGES)
    if stage in ("search_plan", "search_trial"):
        return order.index("search_plan"), f"{generation}{stage}", slot
    return (order.index(stage) if stage in order else len(order)), stage, slot
