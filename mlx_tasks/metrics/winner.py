"""Which candidate wins, by a rule stated in words beside the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RULE = (
    "Of the candidates that may win, take the lowest Frechet distance and the upper end of its interval; among all "
    "whose Frechet distance is not above that, the one with the lowest measured latency wins; equal latencies go to "
    "the lower Frechet distance."
)


def choose_winner(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The winner of scores.json's rows by RULE.

    Args:
        rows: with candidate, kind, refused, latency_ms and metrics.frechet_distance.

    Returns: candidate, best (the row of the lowest distance), bound (its interval's upper end), eligible (the names
        within the bound), rule.
    Raises: ValueError where no row may win.
    """
    runners = [row for row in rows if row["kind"] != "reference" and not row["refused"]]
    if not runners:
        raise ValueError("no candidate may win: every row is a reference or was refused")
    best = min(runners, key=_distance)
    bound = best["metrics"]["frechet_distance"]["high"]
    eligible = [row for row in runners if _distance(row) <= bound]
    winner = min(eligible, key=lambda row: (row["latency_ms"], _distance(row)))
    return {
        "candidate": winner["candidate"],
        "best": best["candidate"],
        "bound": bound,
        "eligible": [row["candidate"] for row in eligible],
        "rule": RULE,
    }


def _distance(row: dict[str, Any]) -> float:
    return row["metrics"]["frechet_distance"]["value"]
