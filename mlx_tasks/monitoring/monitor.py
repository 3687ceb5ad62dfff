"""Compare served images with a bundle's registered reference; say what deserves an alert."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.files import read_json
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.kid import kid
from mlx_tasks.monitoring.two_sample import permutation_test
from mlx_tasks.monitoring.window import Window, read_window
from mlx_tasks.registry.reference import Reference, read_reference


@dataclass(frozen=True)
class Rules:
    """When a window deserves an alert.

    Attributes:
        level: of the two-sample test: the share of windows without drift that raise a false alarm.
        permutations: behind its p value.
        max_quality_loss: largest rise of the Frechet distance to held-out images over the registered images' own at
            the same counts, as a fraction.
        min_images: images below which nothing is said of drift or quality.
        max_unreadable: largest share of files that are no image of the bundle's shape.
        seed: of the permutations and of what is drawn to match counts.
    """

    level: float = 0.01
    permutations: int = 499
    max_quality_loss: float = 0.5
    min_images: int = 32
    max_unreadable: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 / (self.permutations + 1) <= self.level < 1:
            raise ValueError(
                f"level must lie in [1 / (permutations + 1), 1), got {self.level} with {self.permutations} permutations"
            )


def monitor(window_folder: Path, bundle_folder: Path, rules: Rules) -> dict[str, Any]:
    """{"alerts": [...], "measured": {...}} of a folder of served images against a registered bundle.

    An alert holds name, severity, value, limit and message. Fewer than `min_images` readable images measure nothing.
    Raises: DataError where the window or the reference cannot be read.
    """
    sampler = read_json(bundle_folder / "sampler.json")
    window = read_window(window_folder, sampler["resolution"], sampler["channels"])
    reference = read_reference(bundle_folder)
    report = compare(window, reference, sampler["class_names"], rules)
    return report | {"window": str(window_folder), "bundle": str(bundle_folder), "rules": asdict(rules)}


def compare(window: Window, reference: Reference, class_names: list[str], rules: Rules) -> dict[str, Any]:
    """The alerts and measurements of a window.

    Where every image names its class, the reference is taken in the window's own class mix and rows are exchanged
    within a class: callers who ask for other classes than last week are no drift.
    """
    alerts: list[dict[str, Any]] = []
    total = len(window.images) + len(window.unreadable)
    share = len(window.unreadable) / total if total else 0.0
    measured: dict[str, Any] = {"images": len(window.images), "unreadable": len(window.unreadable)}
    if share > rules.max_unreadable:
        first = next(iter(window.unreadable.items()))
        alerts.append(_alert("unreadable", "warning", share, rules.max_unreadable, f"first {first[0]}: {first[1]}"))
    if len(window.images) < rules.min_images:
        measured["skipped"] = f"fewer than {rules.min_images} readable images"
        return {"alerts": alerts, "measured": measured}
    features = reference.features(window.images)
    mine, theirs, strata = _matched(window, reference, class_names, rules.seed)
    measured["matched_by_class"] = strata is not None
    if min(len(mine), len(theirs)) >= rules.min_images:
        drift = permutation_test(features[mine], reference.generated[theirs], rules.permutations, rules.seed, strata)
        measured |= {"mmd2": drift.mmd2, "p_value": drift.p_value, "compared": [len(mine), len(theirs)]}
        if drift.p_value <= rules.level:
            message = "served images do not look like those the bundle drew when it was registered"
            alerts.append(_alert("drift", "critical", drift.p_value, rules.level, message))
        alerts += _quality(features[mine], reference.generated[theirs], reference.held_out, rules, measured)
    else:
        measured["skipped"] = f"fewer than {rules.min_images} images of classes that the reference holds"
    return {"alerts": alerts, "measured": measured}


def _quality(
    window: np.ndarray, generated: np.ndarray, held_out: np.ndarray, rules: Rules, measured: dict[str, Any]
) -> list[dict[str, Any]]:
    """The Frechet distance to held-out images against the registered images' own, at one count: its bias cancels."""
    count = min(len(window), len(generated), len(held_out))
    generator = np.random.Generator(np.random.PCG64([rules.seed, 7]))
    real = held_out[generator.choice(len(held_out), count, replace=False)]
    now = frechet_distance(window[generator.choice(len(window), count, replace=False)], real)
    then = frechet_distance(generated[generator.choice(len(generated), count, replace=False)], real)
    limit = then * (1 + rules.max_quality_loss)
    measured |= {"frechet_distance": now, "registered_frechet_distance": then, "frechet_count": count}
    measured["kernel_distance"] = kid(window, held_out).as_dict()
    if now <= limit:
        return []
    return [_alert("quality", "critical", now, limit, f"Frechet distance {now:.4g}, registered {then:.4g} at {count}")]


def _matched(
    window: Window, reference: Reference, class_names: list[str], seed: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Rows of the window and of the reference to compare, and their classes where both know them."""
    known = {name: index for index, name in enumerate(class_names)}
    if not known or any(name not in known for name in window.classes):
        return np.arange(len(window.images)), np.arange(len(reference.generated)), None
    labels = np.array([known[name] for name in window.classes])
    generator = np.random.Generator(np.random.PCG64([seed, 5]))
    mine, theirs = [], []
    for kind in np.unique(labels):
        ours, others = np.flatnonzero(labels == kind), np.flatnonzero(reference.labels == kind)
        count = min(len(ours), len(others))
        mine.append(generator.choice(ours, count, replace=False))
        theirs.append(generator.choice(others, count, replace=False))
    rows, others = np.concatenate(mine), np.concatenate(theirs)
    return rows, others, (labels[rows], reference.labels[others])


def _alert(name: str, severity: str, value: float, limit: float, message: str) -> dict[str, Any]:
    return {"name": name, "severity": severity, "value": value, "limit": limit, "message": message}
