"""Compare what was served with a bundle's registered reference; say what deserves an alert, and what to do again.

Every test exchanges rows of window and reference (`exchange`), all together keep the level they state (Holm), and every
row of the window is looked at once: without drift, a look raises a false alert with at most that chance.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.files import read_json
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.kid import kid
from mlx_tasks.metrics.scalars import IMAGE_TEXT, SCALARS
from mlx_tasks.monitoring import exchange
from mlx_tasks.monitoring.alerts import Alert, Ledger, alert, furthest, what_to_redo
from mlx_tasks.monitoring.window import features_of, read_window
from mlx_tasks.registry.reference import Reference, read_reference

LEDGER = "ledger.json"
TESTS = len(SCALARS) + 6
"""Most tests of images that one look makes."""


@dataclass(frozen=True)
class Rules:
    """When a window deserves an alert.

    Attributes:
        level: chance of a false alert in a look at images that have not drifted.
        permutations: behind each p value.
        min_images: images below which nothing is said of them: they wait for the next look.
        max_images: of a look, at most; the newest.
        max_error_share: share of requests that the server may fail (status 429 and from 500 on).
        max_latency_ms: what 95 of 100 requests must stay below, waiting included; 0.0: no limit.
        cooldown_s: in which the same alert is not raised again.
        seed: of the exchanges and of what is drawn to match counts.
    Raises: ValueError naming the number and its rule.
    """

    level: float = 0.01
    permutations: int = 1999
    min_images: int = 60
    max_images: int = 1000
    max_error_share: float = 0.02
    max_latency_ms: float = 0.0
    cooldown_s: float = 6 * 3600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not TESTS / (self.permutations + 1) <= self.level < 1:
            raise ValueError(
                f"level must lie in [{TESTS} / (permutations + 1), 1), so that each of {TESTS} tests can reject, got "
                f"{self.level} with {self.permutations} permutations"
            )
        if not 2 <= self.min_images <= self.max_images:
            raise ValueError(f"min_images must lie in [2, max_images], got {self.min_images} and {self.max_images}")
        if not 0 < self.max_error_share < 1 or self.max_latency_ms < 0 or self.cooldown_s < 0:
            raise ValueError("max_error_share must lie in (0, 1), max_latency_ms and cooldown_s must not be negative")


@dataclass(frozen=True)
class Seen:
    """Images of a window.

    Attributes:
        features: (N, D) float64 in the reference's space.
        classes: N class names; "" where none was asked for.
        scalars: {name: (N,)} of `metrics.scalars`; the image-text score is NaN where it was not taken.
    """

    features: np.ndarray
    classes: tuple[str, ...]
    scalars: dict[str, np.ndarray]


def monitor(
    window_folder: Path,
    bundle_folder: Path,
    rules: Rules,
    token: str = "",
    now: float | None = None,
    version: str = "",
) -> dict[str, Any]:
    """Look at what a bundle's servers made since the last look.

    token: names this look; the same again gets the same report. now: Unix time. version: the bundle's in the registry;
    where it is given, images of another version with the same bytes are left out.
    Returns: alerts (with status new or repeated), resolved (fingerprints), suggestion (where the chain should begin
        again, of the new alerts), measured, and the window: from, to, images, requests.
    Raises: DataError where the window or the reference cannot be read.
    """
    from mlx_tasks.models.bundle import bundle_digest

    ledger, digest = Ledger(window_folder / LEDGER), bundle_digest(bundle_folder)
    if (before := ledger.report_of(token)) is not None:
        return before
    reference, names = read_reference(bundle_folder), read_json(bundle_folder / "sampler.json")["class_names"]
    rows: Any = read_window(window_folder, since=ledger.looked_until(digest))
    mine = rows[rows["digest"] == digest]
    if version:
        mine = mine[mine["version"] == version]
    images = mine[(mine["plan"] == "own") & mine["features"].notna()].tail(rules.max_images)
    enough = len(images) >= rules.min_images
    requests: Any = read_window(window_folder, since=ledger.looked_until(f"{digest} requests"))
    requests = requests[(requests["digest"] == digest) | (requests["status"] >= 400)]
    alerts, measured = _service(requests, digest, rules)
    looked = [name for name in ("errors", "latency") if name in measured]
    if enough:
        seen = Seen(
            features_of(images),
            tuple(images["class"].fillna("")),
            {name: images[name].to_numpy(float) for name in (*SCALARS, IMAGE_TEXT) if name in images},
        )
        found, figures = compare(seen, reference, names, rules, digest)
        alerts, measured = alerts + found, measured | figures
        looked += list(figures["p_values"])
    else:
        measured["skipped"] = f"{len(images)} images since the last look, fewer than {rules.min_images}"
    told, resolved = ledger.enter(alerts, looked, digest, time.time() if now is None else now, rules.cooldown_s)
    report = {
        "alerts": told,
        "resolved": resolved,
        "suggestion": furthest([one["suggestion"] for one in told if one["status"] == "new"]),
        "measured": measured,
        "window": {
            "folder": str(window_folder),
            "from": float(mine["at"].min()) if len(mine) else None,
            "to": float(mine["at"].max()) if len(mine) else None,
            "images": len(images),
            "requests": len(requests),
        },
        "digest": digest,
        "rules": asdict(rules),
    }
    until = {f"{digest} requests": float(requests["at"].max())} if len(requests) else {}
    ledger.close(until | ({digest: float(images["at"].max())} if enough else {}), token, report)
    return report


def compare(
    seen: Seen, reference: Reference, class_names: list[str], rules: Rules, model: str = ""
) -> tuple[list[Alert], dict[str, Any]]:
    """(alerts, measurements) of images against a reference.

    Where every image names its class, the reference is taken in the window's own class mix and rows are exchanged
    within a class: callers who ask for other classes than last week are no drift.
    """
    mine, theirs, strata = _matched(seen, reference, class_names, rules.seed)
    measured: dict[str, Any] = {"compared": [len(mine), len(theirs)], "matched_by_class": strata is not None}
    if min(len(mine), len(theirs)) < 2:
        return [], measured | {"skipped": "no images of classes that the reference holds", "p_values": {}}
    rows = np.concatenate([seen.features[mine], reference.generated[theirs]])
    real = reference.held_out
    dealt = exchange.deal(len(mine), len(theirs), rules.permutations, rules.seed, strata)
    kernel = exchange.gaussian_kernel(rows)
    values = {
        "drift": exchange.mmd2(dealt, kernel),
        "quality": exchange.frechet_rise(dealt, rows, real),
        "fidelity": exchange.fidelity_loss(dealt, rows, real),
        "coverage": exchange.coverage_loss(dealt, rows, real),
    }
    if strata is not None:
        values["class_drift"] = exchange.mmd2(dealt, exchange.of_one_class(kernel, np.concatenate(strata)))
    for name, then in (reference.scalars or {}).items():
        if name not in seen.scalars:
            continue
        pooled = np.concatenate([seen.scalars[name][mine], then[theirs]])
        if np.isfinite(pooled).all() and np.ptp(pooled) > 0:
            now, before = seen.scalars[name][mine], then[theirs]
            values[name] = exchange.kolmogorov_smirnov(dealt, pooled)
            measured.setdefault("stability_index", {})[name] = exchange.stability_index(now, before)
            measured.setdefault("means", {})[name] = [float(now.mean()), float(before.mean())]
    p_values = {name: dealt.p_value(found) for name, found in values.items()}
    now, then = _equal_frechet(seen.features[mine], reference.generated[theirs], real, rules.seed)
    measured |= {
        "p_values": p_values,
        "statistics": {name: float(found[0]) for name, found in values.items()},
        "frechet_distance": now,
        "registered_frechet_distance": then,
        "kernel_distance": kid(seen.features[mine], real).as_dict(),
    }
    rise = now / max(then, 1e-12)
    breached = exchange.holm(p_values, rules.level)
    limit = rules.level / max(len(p_values), 1)
    return [
        alert(model, name, p_values[name], limit, _words(name, measured, rise), what_to_redo(name, rise))
        for name in p_values
        if name in breached
    ], measured


def _service(rows: Any, model: str, rules: Rules) -> tuple[list[Alert], dict[str, Any]]:
    """Errors and latency, each held against its limit by a binomial test at the level."""
    from scipy.stats import binomtest

    if not len(rows):
        return [], {}
    failed, total = int(np.count_nonzero(rows["status"].to_numpy() >= 429)), len(rows)
    measured: dict[str, Any] = {"errors": failed / total, "requests": total}
    alerts = []
    if binomtest(failed, total, rules.max_error_share, "greater").pvalue <= rules.level:
        text = f"{failed} of {total} requests failed, allowed {rules.max_error_share:.1%}"
        alerts.append(alert(model, "errors", failed / total, rules.max_error_share, text, "", "warning"))
    served = rows[rows["status"] < 400]
    if len(served):
        took = (served["waited_ms"] + served["drawn_ms"]).to_numpy(float)
        p95 = float(np.quantile(took, 0.95))
        measured["latency"] = {"p50_ms": float(np.median(took)), "p95_ms": p95}
        slow = int((took > rules.max_latency_ms).sum())
        if rules.max_latency_ms and binomtest(slow, len(took), 0.05, "greater").pvalue <= rules.level:
            text = f"95 of 100 requests take up to {p95:.0f} ms, allowed {rules.max_latency_ms:.0f} ms"
            alerts.append(alert(model, "latency", p95, rules.max_latency_ms, text, "tune", "warning"))
    return alerts, measured


def _words(name: str, measured: dict[str, Any], rise: float) -> str:
    p = measured["p_values"][name]
    now, then = measured["frechet_distance"], measured["registered_frechet_distance"]
    text = {
        "drift": "served images do not look like those the bundle drew when it was registered",
        "class_drift": "images of a class do not look like that class did when the bundle was registered",
        "quality": f"the Frechet distance to held-out images is {now:.4g}, {rise:.2f} times the registered {then:.4g}",
        "fidelity": "fewer images than when it was registered lie among real ones",
        "coverage": "fewer kinds of real images than when it was registered have a served image near them",
        IMAGE_TEXT: "images agree otherwise than when the bundle was registered with the captions of their classes",
    }.get(name, f"{name} is distributed otherwise than when the bundle was registered")
    return f"{text} (p = {p:.4g})"


def _equal_frechet(window: np.ndarray, generated: np.ndarray, real: np.ndarray, seed: int) -> tuple[float, float]:
    """(now, registered) distances to held-out images at one count, so that their bias is one."""
    count = min(len(window), len(generated), len(real))
    generator = np.random.Generator(np.random.PCG64([seed, 7]))

    def some(rows: np.ndarray) -> np.ndarray:
        return rows[generator.choice(len(rows), count, replace=False)]

    held = some(real)
    return frechet_distance(some(window), held), frechet_distance(some(generated), held)


def _matched(
    seen: Seen, reference: Reference, class_names: list[str], seed: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Rows of the window and of the reference to compare, and their classes where both know them."""
    known = {name: index for index, name in enumerate(class_names)}
    if not known or any(name not in known for name in seen.classes):
        return np.arange(len(seen.features)), np.arange(len(reference.generated)), None
    labels = np.array([known[name] for name in seen.classes])
    generator = np.random.Generator(np.random.PCG64([seed, 5]))
    mine, theirs = [], []
    for kind in np.unique(labels):
        ours, others = np.flatnonzero(labels == kind), np.flatnonzero(reference.labels == kind)
        count = min(len(ours), len(others))
        mine.append(generator.choice(ours, count, replace=False))
        theirs.append(generator.choice(others, count, replace=False))
    rows, others = np.concatenate(mine), np.concatenate(theirs)
    return rows, others, (labels[rows], reference.labels[others])
