"""Which candidate wins, by a rule stated in words beside the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RULE = (
    "Of the candidates that may win, take the lowest {metric} and the upper end of its interval; among all whose "
    "{metric} is not above that, the one with the lowest measured latency wins; equal latencies go to the lower "
    "{metric}."
)


def choose_winner(rows: Sequence[dict[str, Any]], metric: str = "frechet_distance") -> dict[str, Any]:
    """The winner of scores.json's rows by RULE.

    Args:
        rows: with candidate, kind, refused, latency_ms and metrics.
        metric: what decides, lower is better: the first that passed the sanity ladder (ladder.deciding_metric).

    Returns: candidate, metric, best (the row of the lowest), bound (its interval's upper end), eligible (the names
        within the bound), rule.
    Raises: ValueError where no row may win.
    """
    runners = [row for row in rows if row["kind"] != "reference" and not row["refused"]]
    if not runners:
        raise ValueError("no candidate may win: every row is a reference or was refused")

    def value(row: dict[str, Any]) -> float:
        return row["metrics"][metric]["value"]

    best = min(runners, key=value)
    bound = best["metrics"][metric]["high"]
    eligible = [row for row in runners if value(row) <= bound]
    winner = min(eligible, key=lambda row: (row["latency_ms"], value(row)))
    return {
        "candidate": winner["candidate"],
        "metric": metric,
        "best": best["candidate"],
        "bound": bound,
        "eligible": [row["candidate"] for row in eligible],
        "rule": RULE.format(metric=metric.replace("_", " ")),
    }
