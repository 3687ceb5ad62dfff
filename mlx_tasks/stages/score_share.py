"""Stage `score_share`: one slot's share of the candidates and reference sets, drawn and scored against held-out images.

Writes work/scores_parts/SLOT (metrics/parts.py). Latencies are measured later, by `evaluate`, on one machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json
from mlx_tasks.metrics.allowance import Allowance, in_turn
from mlx_tasks.metrics.bench import Bench, Row
from mlx_tasks.metrics.drawing import Drawer, open_drawer
from mlx_tasks.metrics.entries import Entry, open_entries
from mlx_tasks.metrics.held_out import HeldOut, open_held_out
from mlx_tasks.metrics.parts import write_part
from mlx_tasks.metrics.row_store import RowStore
from mlx_tasks.metrics.scoring import Judge
from mlx_tasks.metrics.shares import share_out
from mlx_tasks.stages.context import StageContext

LEAST_FRESH = 20
"""Validation images below which memorisation is left out."""


def run(context: StageContext, slot: int) -> None:
    """Score the slot's share; every finished row is kept in the checkpoints, so that a killed slot goes on after it.

    Raises: DataError for a slot that the params do not have.
    """
    settings, seed = context.config.evaluate, context.config.seed
    if slot not in settings.slots:
        raise DataError(f"evaluate.slots has no slot {slot}, only {list(settings.slots)}")
    started = time.perf_counter()
    held_out = open_held_out(context.work, context.config)
    drawer = open_drawer(context.root, held_out, seed, context.hardware)
    entries = open_entries(context.root, settings, held_out, drawer, seed).all(drawer, settings.seeds)
    share = [entries[i] for i in share_out([entry.cost for entry in entries], len(settings.slots))[slot]]
    facts: dict[str, Any] = {"inputs": None, "setup": None, "left_out": {}, "hardware": context.hardware.as_dict()}
    store = None
    rows: list[Row] = []
    if share:
        bench, setup = _open_bench(context, held_out, drawer)
        facts |= {"inputs": _inputs_digest(context, setup), "setup": setup}
        store = RowStore(context.checkpoints / "rows", facts["inputs"])
        rows, facts["left_out"] = _rows(context, share, bench, store)
    facts["seconds"] = time.perf_counter() - started
    pictures = [store.picture(row["candidate"]) for row in rows] if store else []
    write_part(context.work, slot, len(settings.slots), zip(rows, pictures, strict=True), facts)
    _record(context, rows, len(entries))
    if store:
        store.clear()


def _rows(context: StageContext, share: list[Entry], bench: Bench, store: RowStore) -> tuple[list[Row], dict[str, str]]:
    """(the rows that the time allowed, in the share's order; name -> why, of those left out)."""
    rows: dict[str, Row] = {}
    clock = Allowance(context.config.evaluate.max_minutes)
    left_out = {}
    for entry in in_turn(share):
        kept = store.get(entry.name)
        if kept is None and (why := clock.refusal(entry)):
            left_out[entry.name] = why
            continue
        row = rows[entry.name] = kept or store.put(entry.name, *entry.make(bench))
        clock.spend(entry, row["seconds"])
        distance = row["metrics"]["frechet_distance"]["value"]
        context.progress.update(len(rows), len(share), "candidates", candidate=entry.name, frechet_distance=distance)
    if left_out:
        context.progress.say(f"left out for evaluate.max_minutes: {', '.join(left_out)}")
    return [rows[entry.name] for entry in share if entry.name in rows], left_out


def _open_bench(context: StageContext, held_out: HeldOut, drawer: Drawer) -> tuple[Bench, dict[str, Any]]:
    """The bench, and what it is, for scores.json: nothing in it depends on the machine."""
    from mlx_tasks.metrics.extractors.self_supervised import load_features
    from mlx_tasks.metrics.image_text import load_image_text
    from mlx_tasks.metrics.published import open_published
    from mlx_tasks.metrics.random_conv import RandomConvFeatures

    config, work, settings = context.config, context.work, context.config.evaluate
    real, captions, level, seed = held_out.images, held_out.captions, settings.confidence, config.seed
    facts = read_json(work / "image_text" / "model.json")
    space, embedded = RandomConvFeatures(real.shape[-1]), load_features(work / "features")
    published = open_published(
        settings.extractors,
        settings.weights,
        real,
        captions if len(set(captions or ())) > 1 else None,
        held_out.labels if held_out.conditional else None,
        settings.bootstrap,
        level,
        seed,
    )
    fresh = held_out.validation.images if len(held_out.validation) >= LEAST_FRESH else None
    judge = Judge(
        real,
        space(real),
        space,
        captions,
        load_image_text(work / "image_text") if facts["trained"] else None,
        settings.bootstrap,
        level,
        seed,
        None if fresh is None else space(held_out.train.images),
        None if fresh is None else space(fresh),
        embedded,
        embedded(real),
        tuple(published),
    )
    no_score = facts.get("reason") or ("" if held_out.conditional else "images are not drawn to captions")
    setup = {
        "samples": len(held_out),
        "samples_asked": settings.samples,
        "test_images": held_out.test_images,
        "resolution": config.resolution,
        "channels": real.shape[-1],
        "classes": held_out.class_names,
        "seed": seed,
        "seeds": settings.seeds,
        "noise_seed": drawer.noise_seed,
        "resamples": settings.bootstrap,
        "confidence": level,
        "dataset": read_json(work / "dataset" / "summary.json").get("fingerprint"),
        "feature_space": {"name": "random_conv", "seed": space.seed, "dimension": int(judge.real_features.shape[1])},
        "embedded_space": embedded.identity,
        "published": [one.identity for one in published],
        "image_text": facts,
        "no_image_text_score_because": no_score,
    }
    return Bench(judge, held_out, drawer, settings.seeds), setup


def _inputs_digest(context: StageContext, setup: dict[str, Any]) -> str:
    """SHA-256 of all that a row depends on, wherever it lies: setup, bundles, schedules, judging models, code."""
    package, work, settings = Path(__file__).resolve().parent.parent, context.work, context.config.evaluate
    digest = hashlib.sha256(json.dumps([setup, settings.nfe, len(settings.slots)], sort_keys=True).encode())
    sources = [p for part in ("metrics", "samplers", "models", "diffusion") for p in (package / part).rglob("*.py")]
    inputs = [work / name / "digests.json" for name in ("teacher", "searched")]
    inputs += [*work.glob("students/*/digests.json"), work / "students" / "table.json"]
    inputs += [work / "schedules" / "schedules.json", work / "features" / "model.safetensors"]
    inputs += work.glob("image_text/*.safetensors")
    for root, paths in ((package, [*sources, Path(__file__).resolve()]), (work, inputs)):
        for path in sorted(paths):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _record(context: StageContext, rows: list[Row], total: int) -> None:
    context.tracker.tags({"rows": ", ".join(row["candidate"] for row in rows)})
    context.tracker.metrics({"score/rows": len(rows), "score/seconds": sum(row["seconds"] for row in rows)}, 0)
    context.progress.say(f"scored {len(rows)} of {total} rows" if rows else "every row is another slot's")
