"""The sanity ladder: does a metric put sets of known worth in their order on this dataset?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REAL, HELD_OUT, NOISY = "reference-real", "reference-held-out", "reference-noisy"
BLURRED, GAUSSIAN, NOISE = "reference-blurred", "reference-gaussian", "reference-noise"
MISSING = "reference-class-missing"

_DISTANCE = ((REAL, NOISY), (REAL, GAUSSIAN), (REAL, BLURRED), (BLURRED, NOISE), (GAUSSIAN, NOISE), (NOISY, NOISE))
_KIND = ((REAL, BLURRED), (REAL, NOISE))

HIGHER_IS_BETTER = frozenset(
    {"precision", "recall", "density", "coverage", "image_text_score", "clip_score", "inception_score", "c2st_p_value"}
)
"""Metrics of which more is better; of all others less is."""

ORDERS: dict[str, tuple[tuple[str, str], ...]] = {
    "frechet_distance": (*_DISTANCE, (REAL, MISSING)),
    "kernel_distance": _DISTANCE,
    "frechet_distance_embedded": _DISTANCE,
    "kernel_distance_embedded": _DISTANCE,
    "precision": ((REAL, GAUSSIAN), *_KIND),
    "recall": _KIND,
    "density": ((REAL, GAUSSIAN), *_KIND),
    "coverage": ((REAL, GAUSSIAN), *_KIND),
    "c2st_accuracy": ((REAL, GAUSSIAN), *_KIND),
    "image_text_score": ((REAL, NOISE),),
    "memorisation": ((HELD_OUT, REAL),),
    "fid": _DISTANCE,
    "kid": _DISTANCE,
    "fd_dinov2": _DISTANCE,
    "cmmd": ((REAL, GAUSSIAN), *_KIND),
    "inception_score": ((REAL, NOISE),),
    "clip_score": ((REAL, NOISE),),
}
"""Metric -> pairs (better, worse) that it must put in this order.

A metric is asked for what it is made to see, no more: recall may not mind a Gaussian that covers the data, a kernel
distance may miss one class in ten, and only `memorisation` is asked to tell the training images (which `reference-real`
is drawn from) from held-out ones.
"""

DECIDING = ("frechet_distance", "frechet_distance_embedded", "kernel_distance", "kernel_distance_embedded")
"""What a winner may be chosen by: the first of these that is trusted."""


def check_ladder(
    rows: Sequence[Mapping[str, Any]], distrusted: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """{metric: {trusted, broken, checked}} from scores.json's reference rows.

    broken: a sentence for every pair in the wrong order or equal; checked: how many pairs there were. A metric of whose
    pairs none was scored is not trusted either: nothing is known of it here.
    distrusted: {metric: why} of those that are known to say nothing, whatever order they give.
    """
    metrics = {row["candidate"]: row["metrics"] for row in rows if row["kind"] == "reference"}
    judged = {name: _checked(name, pairs, metrics) for name, pairs in ORDERS.items() if _scored(name, metrics)}
    for name, why in (distrusted or {}).items():
        if name in judged:
            judged[name] |= {"trusted": False, "broken": [*judged[name]["broken"], why]}
    return judged


def deciding_metric(sanity: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """(metric, why): the first trusted one of DECIDING; the first of all, with a warning, where none is."""
    for name in DECIDING:
        if sanity.get(name, {}).get("trusted"):
            skipped = DECIDING[: DECIDING.index(name)]
            why = f"{', '.join(skipped)} failed the sanity ladder" if skipped else "it passed the sanity ladder"
            return name, why
    return DECIDING[0], "no distance passed the sanity ladder: do not trust this choice"


def _scored(name: str, metrics: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(name in values for values in metrics.values())


def _checked(name: str, pairs: Sequence[tuple[str, str]], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    broken, checked = [], 0
    for better, worse in pairs:
        found = [metrics.get(set_name, {}).get(name, {}).get("value") for set_name in (better, worse)]
        if None in found:
            continue
        checked += 1
        good, bad = found
        if not (good > bad if name in HIGHER_IS_BETTER else good < bad):
            sets = [s.removeprefix("reference-") for s in (better, worse)]
            broken.append(f"{sets[0]} should score better than {sets[1]}: {good:.4g} against {bad:.4g}")
    return {"trusted": checked > 0 and not broken, "broken": broken, "checked": checked}
