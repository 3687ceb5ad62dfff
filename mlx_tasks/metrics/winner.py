"""Which candidate wins, by a rule stated in words beside the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_tasks.metrics.ladder import HIGHER_IS_BETTER
from mlx_tasks.metrics.significance import difference_of_intervals

RULE = (
    "Of the candidates that may win, take the lowest {metric} and the upper end of its interval; among all whose "
    "{metric} is not above that, and that are not worse than that best one beyond the noise in any other metric that "
    "passed the sanity ladder, the one with the lowest measured latency wins; equal latencies go to the lower {metric}."
)


def choose_winner(
    rows: Sequence[dict[str, Any]],
    metric: str = "frechet_distance",
    sanity: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The winner of scores.json's rows by RULE.

    One distance at a few hundred images lets pass what others see plainly: half the precision, or a classifier that
    is never wrong. Latency decides only among those that no trusted metric tells from the best.

    Args:
        rows: with candidate, kind, refused, latency_ms and metrics.
        metric: what decides, lower is better: the first that passed the sanity ladder (ladder.deciding_metric).
        sanity: which metrics passed the ladder (ladder.check_ladder); without it only `metric` counts.

    Returns: candidate, metric, best (the row of the lowest), bound (its interval's upper end), eligible (the names
        that latency decided among), set_aside (name -> the metrics it is worse in, of those within the bound), rule.
    Raises: ValueError where no row may win.
    """
    runners = [row for row in rows if row["kind"] != "reference" and not row["refused"]]
    if not runners:
        raise ValueError("no candidate may win: every row is a reference or was refused")

    def value(row: dict[str, Any]) -> float:
        return row["metrics"][metric]["value"]

    best = min(runners, key=value)
    bound = best["metrics"][metric]["high"]
    within = [row for row in runners if value(row) <= bound]
    trusted = [name for name, judged in (sanity or {}).items() if judged["trusted"] and name != metric]
    worse = {row["candidate"]: [name for name in trusted if _worse(row, best, name)] for row in within}
    eligible = [row for row in within if not worse[row["candidate"]]]
    winner = min(eligible, key=lambda row: (row["latency_ms"], value(row)))
    return {
        "candidate": winner["candidate"],
        "metric": metric,
        "best": best["candidate"],
        "bound": bound,
        "eligible": [row["candidate"] for row in eligible],
        "set_aside": {name: metrics for name, metrics in worse.items() if metrics},
        "rule": RULE.format(metric=metric.replace("_", " ")),
    }


def _worse(row: dict[str, Any], best: dict[str, Any], name: str) -> bool:
    """Whether a row is worse than the best one beyond the noise of both, where both have an interval."""
    ours, theirs = (one["metrics"].get(name) or {} for one in (row, best))
    triples = [tuple(estimate.get(key) for key in ("value", "low", "high")) for estimate in (ours, theirs)]
    if row is best or any(number is None for triple in triples for number in triple):
        return False
    found = difference_of_intervals(*triples, higher_is_better=name in HIGHER_IS_BETTER)  # type: ignore[arg-type]
    return found.verdict == "worse"
