"""Stage `evaluate`: every candidate and every reference set, scored against held-out images by one ruler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.data.loader import load_split
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, atomic_write_text, read_json, write_json
from mlx_tasks.metrics.bench import LATENCY_REPEATS, Bench, Row
from mlx_tasks.metrics.candidates import (
    Candidate,
    LeftOut,
    own_candidate,
    schedule_candidates,
    teacher_candidates,
)
from mlx_tasks.metrics.ladder import check_ladder, deciding_metric
from mlx_tasks.metrics.references import (
    blurred,
    class_gaussians,
    class_missing,
    held_out_rows,
    matching_real,
    noise,
    noisy,
)
from mlx_tasks.metrics.row_store import RowStore
from mlx_tasks.metrics.scoring import Judge
from mlx_tasks.metrics.winner import choose_winner
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.memory import micro_batch_limit

LARGEST_BATCH = {"cpu": 64, "cuda": 256, "metal": 256}
"""Images drawn together. On a CPU more of them fall out of its caches: 192 took a third longer an image than 64."""


def run(context: StageContext) -> None:
    """Score every candidate; write work/scores/, metrics/evaluate.json and plots/evaluate.csv (for `dvc plots`).

    scores.json: `rows` (one a candidate or reference set), `winner` (metrics/winner.py), `sanity` (which
    metrics passed the ladder, metrics/ladder.py), `left_out` (combinations not
    scored, each with its reason), `setup` (what the numbers were measured with). Every finished row is kept in the
    checkpoints, so that a killed evaluation goes on with the next one.
    """
    bench, setup = _open_bench(context)
    candidates, left_out = _candidates(context, bench)
    references = _reference_sets(bench, left_out)
    store = RowStore(context.checkpoints / "rows", _inputs_digest(context, setup))
    total = len(references) + len(candidates)
    rows: list[Row] = []
    for name, draw in references.items():
        rows.append(store.get(name) or store.put(name, *bench.reference_row(name, draw())))
        _tell(context, rows, total)
    for candidate in candidates:
        kept = store.get(candidate.name)
        if kept is None:
            kept = store.put(candidate.name, *bench.candidate_row(candidate, rows))
        rows.append(kept)
        _tell(context, rows, total)

    sanity = check_ladder(rows)
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
            atomic_write_bytes(fresh / "grids" / f"{row['candidate']}.png", store.picture(row["candidate"]))
        strips = {"winner": winner["candidate"]} | ({"teacher": best_teacher["candidate"]} if best_teacher else {})
        for role, name in strips.items():
            atomic_write_bytes(fresh / "grids" / f"strip-{role}.png", bench.strip(by_name[name]))
        write_json(
            fresh / "scores.json",
            {
                "rows": rows,
                "winner": winner,
                "teacher": best_teacher["candidate"] if best_teacher else None,
                "sanity": sanity,
                "left_out": [asdict(one) for one in left_out],
                "setup": setup,
            },
        )
    flat = _figures(rows, winner, best_teacher)
    write_json(context.work / "metrics" / "evaluate.json", flat)
    atomic_write_text(context.work / "plots" / "evaluate.csv", plot_rows(rows))
    _record(context, rows, winner, flat)
    store.clear()


def _open_bench(context: StageContext) -> tuple[Bench, dict[str, Any]]:
    """The bench, and what it is, for scores.json."""
    from mlx_tasks.metrics.extractors.self_supervised import load_features
    from mlx_tasks.metrics.image_text import load_image_text
    from mlx_tasks.metrics.published import open_published
    from mlx_tasks.metrics.random_conv import RandomConvFeatures

    config, work = context.config, context.work
    train = load_split(work / "dataset", config.resolution, "train")
    validation = load_split(work / "dataset", config.resolution, "validation")
    test = load_split(work / "dataset", config.resolution, "test")
    count = min(config.evaluate.samples, len(test))
    if count < 10:
        raise DataError(f"the test split has {len(test)} images, too few to score against: at least 10 are needed")
    rows = held_out_rows(len(test), count, config.seed)
    real, labels = np.array(test.images[rows]), test.labels[rows]
    conditional = bool(test.class_names)
    facts = read_json(work / "image_text" / "model.json")
    image_text = load_image_text(work / "image_text") if facts["trained"] else None
    space = RandomConvFeatures(real.shape[-1])
    embedded = load_features(work / "features")
    captions = [test.captions[i] for i in rows] if conditional else None
    level, resamples, seed = config.evaluate.confidence, config.evaluate.bootstrap, config.seed
    published = open_published(
        config.evaluate.extractors,
        config.evaluate.weights,
        real,
        captions if len(set(captions or ())) > 1 else None,
        labels if conditional else None,
        resamples,
        level,
        seed,
    )
    fresh = validation.images if len(validation) >= 20 else None
    noise_seed = int.from_bytes(hashlib.blake2b(f"{config.seed}/evaluate".encode(), digest_size=4).digest(), "big")
    judge = Judge(
        real,
        space(real),
        space,
        captions,
        image_text,
        resamples,
        level,
        seed,
        None if fresh is None else space(train.images),
        None if fresh is None else space(fresh),
        embedded,
        embedded(real),
        tuple(published),
    )
    no_score = facts.get("reason") or ("" if conditional else "images are not drawn to captions")
    setup = {
        "samples": count,
        "samples_asked": config.evaluate.samples,
        "test_images": len(test),
        "resolution": config.resolution,
        "channels": real.shape[-1],
        "classes": list(test.class_names),
        "seed": config.seed,
        "seeds": config.evaluate.seeds,
        "noise_seed": noise_seed,
        "resamples": config.evaluate.bootstrap,
        "confidence": config.evaluate.confidence,
        "latency_batch": config.evaluate.latency_batch,
        "latency_repeats": LATENCY_REPEATS,
        "hardware": context.hardware.as_dict(),
        "dataset": read_json(work / "dataset" / "summary.json").get("fingerprint"),
        "feature_space": {"name": "random_conv", "seed": space.seed, "dimension": int(judge.real_features.shape[1])},
        "embedded_space": embedded.identity,
        "published": [one.identity for one in published],
        "image_text": facts,
        "no_image_text_score_because": no_score,
    }
    bench = Bench(
        judge,
        train,
        validation,
        labels,
        conditional,
        noise_seed,
        context.root,
        min(LARGEST_BATCH[context.hardware.kind], micro_batch_limit(context.hardware.max_micro_batch)),
        config.evaluate.latency_batch,
        config.evaluate.seeds,
    )
    return bench, setup


def _inputs_digest(context: StageContext, setup: dict[str, Any]) -> str:
    """SHA-256 of all that a row depends on: setup, params, bundles, schedules, and the code that measures."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(json.dumps([setup, context.config.dump()], sort_keys=True).encode())
    sources = [p for part in ("metrics", "samplers", "models", "diffusion") for p in (package / part).rglob("*.py")]
    inputs = [*context.work.glob("*/digests.json"), *context.work.glob("students/*/digests.json")]
    inputs += [p for p in (context.work / "features" / "model.safetensors",) if p.is_file()]
    inputs += [p for p in (context.work / "schedules" / "schedules.json",) if p.is_file()]
    for path in sorted([*sources, *inputs, Path(__file__)]):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _candidates(context: StageContext, bench: Bench) -> tuple[list[Candidate], list[LeftOut]]:
    work = context.work
    teacher = bench.bundle("work/teacher")
    candidates, left_out = teacher_candidates(
        "work/teacher", teacher.sampler, teacher.schedule, context.config.evaluate.nfe
    )
    refused = read_refusals(work / "students" / "table.json")
    for folder in sorted((work / "students").glob("steps_*"), key=lambda p: -int(p.name.removeprefix("steps_"))):
        steps = int(folder.name.removeprefix("steps_"))
        relative = f"work/students/{folder.name}"
        sampler = bench.bundle(relative).sampler
        candidates.append(own_candidate(f"student-steps{steps}", "student", relative, sampler, refused.get(steps, "")))
    searched = bench.bundle("work/searched")
    more, also_left_out = schedule_candidates(
        "work/searched", searched.sampler, read_grids(work / "schedules" / "schedules.json")
    )
    return candidates + more, left_out + also_left_out


def read_refusals(path: Path) -> dict[int, str]:
    """Steps -> why the distillation's gate refused that student.  Raises: DataError for another shape."""
    try:
        return {int(row["steps"]): str(row["reason"]) for row in read_json(path)["students"] if not row["accepted"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not the distill stage's table ({error!r}): run `mlx-tasks distill`") from error


def read_grids(path: Path) -> list[dict[str, Any]]:
    """Budget, grid, solver, timesteps and learned steps of all that the tune stage compared.

    Raises: DataError for another shape.
    """
    keys = ("budget", "grid", "solver", "timesteps")
    try:
        rows = read_json(path)["rows"]
        return [{**{key: row[key] for key in keys}, "learned": row.get("learned")} for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not the tune stage's schedules ({error!r}): run `mlx-tasks tune`") from error


def _reference_sets(bench: Bench, left_out: list[LeftOut]) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> a function that makes the set; made only when its row is not kept."""
    images, labels, wanted, seed = bench.train.images, bench.train.labels, bench.labels, bench.judge.seed
    missing = sorted(set(wanted.tolist()) - set(labels.tolist()))
    if missing:
        raise DataError(f"the test split has labels {missing} that the training split lacks: run validate again")
    sets: dict[str, Callable[[], np.ndarray]] = {"reference-real": lambda: matching_real(images, labels, wanted, seed)}
    if len(np.unique(wanted)) > 1:
        sets["reference-class-missing"] = lambda: class_missing(images, labels, wanted, seed)
    else:
        left_out.append(LeftOut("reference-class-missing", "there is one class, or there are none"))
    held_out = bench.validation
    if set(wanted.tolist()) <= set(held_out.labels.tolist()):
        sets["reference-held-out"] = lambda: matching_real(held_out.images, held_out.labels, wanted, seed)
    else:
        left_out.append(LeftOut("reference-held-out", "the validation split lacks a class that the test split has"))
    sets["reference-noisy"] = lambda: noisy(matching_real(images, labels, wanted, seed), seed)
    sets["reference-gaussian"] = lambda: class_gaussians(images, labels, wanted, seed)
    sets["reference-blurred"] = lambda: blurred(matching_real(images, labels, wanted, seed))
    sets["reference-noise"] = lambda: noise(bench.judge.real.shape, seed)
    return sets


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


def _tell(context: StageContext, rows: list[Row], total: int) -> None:
    row = rows[-1]
    distance = row["metrics"]["frechet_distance"]["value"]
    context.progress.update(len(rows), total, "candidates", candidate=row["candidate"], frechet_distance=distance)


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
