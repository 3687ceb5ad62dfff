"""Stage `register`: the winner as a bundle with its lineage, through the gate, into the registry."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlx_tasks.comparison.earlier import write_comparison
from mlx_tasks.data.loader import load_split
from mlx_tasks.errors import GateRefused
from mlx_tasks.files import atomic_write_text, read_json, write_json
from mlx_tasks.models.bundle import Bundle, bundle_digest, content_digest, write_bundle
from mlx_tasks.models.digests import write_digests_beside
from mlx_tasks.registry import lineage
from mlx_tasks.registry.champion import champion_scores, rescore
from mlx_tasks.registry.class_captions import of_run
from mlx_tasks.registry.gate import Champion, Verdict, judge
from mlx_tasks.registry.history import record
from mlx_tasks.registry.levels import with_levels
from mlx_tasks.registry.mlflow_registry import CONDITIONS_TAG, CONTENT_TAG, DIGEST_TAG, SCORES_TAG, Registry, Version
from mlx_tasks.registry.model_card import model_card
from mlx_tasks.registry.model_name import with_model_name
from mlx_tasks.registry.names import CHALLENGER, CHAMPION
from mlx_tasks.registry.promotion import promote
from mlx_tasks.registry.reference import make_reference, write_reference
from mlx_tasks.registry.same_data import check_same, identity_of_workspace
from mlx_tasks.registry.winner import Winner, read_winner, winning_bundle
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.rest import tracking_uri

SHOWN_REFERENCES = ("real", "gaussian", "noise")
ROUNDS = 5
"""Judgements against champions that were made meanwhile, before a run gives up."""
NO_SERVER = "not registered: no tracking server (MLFLOW_TRACKING_URI is not set)"


def run(context: StageContext) -> None:
    """Write work/registered/{bundle, model_card.md, comparison, verdict.json}; register, judge, set aliases.

    Safe to repeat: a version carries a key of run, params and bundle, and one that is there is taken, not made again.
    Raises: DataError before anything is written where the model's versions were made from another data set;
    GateRefused with the reasons once all is written, which ends the stage green.
    """
    context = replace(context, config=with_model_name(context.config, context.root))
    config, out = context.config, context.work / "registered"
    uri = tracking_uri() if context.tracker.run_id else None
    registry = Registry(uri) if uri else None
    data = identity_of_workspace(context.root, config.data.path)
    if registry:
        check_same(registry, config.register_.model_name, data)
    winner = read_winner(read_json(context.work / "scores" / "scores.json"))
    bundle = winning_bundle(context.root, winner)
    test = load_split(context.work / "dataset", bundle.sampler.resolution, "test")
    told = lineage.collect(context.root, config, context.hardware, _described(winner))
    train = load_split(context.work / "dataset", bundle.sampler.resolution, "train")
    sampler = with_levels(bundle, train.images, context.progress.say)
    folder = out / "bundle"
    write_bundle(folder, bundle.model, bundle.schedule, sampler, told)
    context.progress.say(f"winner {winner.name}: drawing the reference images that a monitor compares with")
    captions = of_run(context.work / "image_text", train) if bundle.sampler.class_names else None
    write_reference(folder, make_reference(bundle, test.images, winner.setup["samples"], captions))

    score_again = partial(rescore, test=test, setup=winner.setup)
    key = _key(config.digest, folder, told["run"] or context.tracker.run_id or "")
    verdict, against = _judge(context, registry, winner, key, score_again)
    _write_card(context, winner, bundle, told, verdict)
    registered: dict[str, Any] | None = None
    note, version, before = NO_SERVER, None, None
    if registry:
        version = registry.register(
            config.register_.model_name,
            key,
            folder,
            str(context.tracker.run_id),
            _tags(winner, told, verdict, folder) | data.tags,
        )
        before = registry.by_alias(version.name, CHAMPION)
        registry.set_alias(version.name, CHALLENGER, version.version)
        verdict, note = _settle(context, registry, winner, key, score_again, version, (verdict, against))
        registered = {
            "name": version.name,
            "version": version.version,
            "uri": version.uri,
            "run_id": version.run_id,
            "aliases": [CHALLENGER] + ([CHAMPION] if note.startswith("promoted") else []),
        }
    if before and version and before.version == version.version:
        before = None  # an attempt before this one promoted this very version
    write_comparison(out / "comparison", context.root, registry, version, before)
    _tell(context, winner, verdict, registered, note)
    if not verdict.passed:
        raise GateRefused(list(verdict.reasons))


def _described(winner: Winner) -> dict[str, Any]:
    keys = ("candidate", "kind", "bundle", "bundle_digest", "solver", "grid", "timesteps", "guidance_scale", "nfe")
    return {key: winner.row[key] for key in keys} | {"metrics": winner.row["metrics"], "setup": winner.setup}


def _judge(
    context: StageContext,
    registry: Registry | None,
    winner: Winner,
    key: str,
    score_again: Any,
    unless: tuple[Verdict, Version | None] | None = None,
) -> tuple[Verdict, Version | None]:
    """The gate's verdict and the champion it was made against.

    `unless`: an earlier verdict, which stands where the champion is still the same; another run may have promoted one.
    """
    gate, name = context.config.gate, context.config.register_.model_name
    holder = registry.by_alias(name, CHAMPION) if registry else None
    if holder and holder.tags.get("mlx_tasks.key") == key:
        holder = None  # this very version: an attempt before this one promoted it
    if unless and (unless[1].version if unless[1] else None) == (holder.version if holder else None):
        return unless
    champion: Champion | None = None
    if registry and holder and gate.not_worse:
        champion = champion_scores(registry, holder, winner.conditions, gate.not_worse, score_again)
    verdict = judge(
        winner.scores,
        gate.limits,
        champion,
        not_worse=gate.not_worse,
        sanity=winner.sanity,
        references=winner.references,
    )
    return verdict, holder


def _settle(
    context: StageContext,
    registry: Registry,
    winner: Winner,
    key: str,
    score_again: Any,
    version: Version,
    first: tuple[Verdict, Version | None],
) -> tuple[Verdict, str]:
    """(the last verdict, what happened in words): the title is given if it is earned, asked for and not taken first."""
    verdict, against = first
    for _ in range(ROUNDS):
        verdict, against = _judge(context, registry, winner, key, score_again, unless=(verdict, against))
        if not verdict.passed:
            return verdict, "not promoted: the gate refused"
        if not context.config.gate.promote:
            return verdict, "not promoted: gate.promote is off"
        faster = promote(registry, version, against)
        if faster is None:
            before = against.version if against else ""
            why = f"the gate passed {winner.name}: {_scores_in_words(winner)}"
            record(registry, version.name, version.version, "promoted", before=before, run=_run(context), why=why)
            return verdict, f"promoted: version {version.version} is champion"
        context.progress.say(f"version {faster} became champion first: judged again, against it")
    return verdict, f"not promoted: other runs were faster {ROUNDS} times; run `mlx-tasks register` again"


def _run(context: StageContext) -> str:
    return os.environ.get("MLX_TASKS_RUN_ID") or context.tracker.run_id or ""


def _scores_in_words(winner: Winner) -> str:
    shown = ((name, winner.scores.get(name)) for name in ("frechet_distance", "recall", "latency_ms"))
    return ", ".join(f"{name} {score.value:.4g}" for name, score in shown if score and score.value is not None)


def _key(digest: str, folder: Path, run: str) -> str:
    text = json.dumps([run, digest, bundle_digest(folder)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _tags(winner: Winner, told: dict[str, Any], verdict: Verdict, folder: Path) -> dict[str, str]:
    metrics = winner.row["metrics"]
    return {
        "mlx_tasks.candidate": winner.name,
        "mlx_tasks.commit": told["code"]["commit"] or "unknown",
        "mlx_tasks.dirty": str(told["code"]["dirty"]).lower(),
        "mlx_tasks.dataset": str(told["dataset"].get("fingerprint", "unknown")),
        "mlx_tasks.params_digest": told["params_digest"],
        "mlx_tasks.run": told["run"] or "",
        "mlx_tasks.gate": "passed" if verdict.passed else "; ".join(verdict.reasons)[:4000],
        DIGEST_TAG: bundle_digest(folder),
        CONTENT_TAG: content_digest(folder),
        SCORES_TAG: json.dumps(metrics),
        CONDITIONS_TAG: json.dumps(winner.conditions),
    }


def _write_card(context: StageContext, winner: Winner, bundle: Bundle, told: dict[str, Any], verdict: Verdict) -> None:
    """The card beside the bundle, and in it as README.md, where hubs look for it."""
    shown = {name: winner.references[name] for name in SHOWN_REFERENCES if name in winner.references}
    text = model_card(
        context.config.register_.model_name,
        winner,
        bundle.sampler.to_dict(),
        told,
        verdict.to_dict(),
        told["dataset"].get("facts") or {},
        shown,
    )
    atomic_write_text(context.work / "registered" / "model_card.md", text)
    atomic_write_text(context.work / "registered" / "bundle" / "README.md", text)
    write_digests_beside(context.work / "registered" / "bundle")


def _tell(
    context: StageContext, winner: Winner, verdict: Verdict, registered: dict[str, Any] | None, note: str
) -> None:
    """verdict.json, the metrics file, MLflow, and a line for people."""
    promoted = note.startswith("promoted")
    out = context.work / "registered"
    told = verdict.to_dict() | {
        "candidate": winner.name,
        "registered": registered,
        "promoted": promoted,
        "note": note,
    }
    write_json(out / "verdict.json", told)
    named = {"model": registered["name"], "version": int(registered["version"])} if registered else {}
    figures = {"passed": verdict.passed, "promoted": promoted} | named
    write_json(context.work / "metrics" / "register.json", figures)
    context.tracker.metrics({"gate/passed": float(verdict.passed), "gate/promoted": float(promoted)}, 0)
    context.tracker.tags({"winner": winner.name, "gate": "passed" if verdict.passed else "refused"})
    for name in ("verdict.json", "model_card.md"):
        context.tracker.artifact(out / name, "registered")
    # With the version's own run too: where evaluate was taken from the cache, no run of this parent logged scores.
    context.tracker.artifact(context.work / "scores" / "scores.json", "scores")
    picture = context.work / "scores" / "grids" / f"{winner.name}.png"
    if picture.is_file():
        context.tracker.artifact(picture, "scores/grids")
    context.progress.say(f"{winner.name}: gate {'passed' if verdict.passed else 'refused'}; {note}")
