"""The promotion gate: a pure function of the scores, the rules and the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

CHAMPION_METRIC = "frechet_distance"
"""What a candidate and the champion are compared by; lower is better."""


class Rule(Protocol):
    """A rule as `config.Limit` has it."""

    @property
    def metric(self) -> str: ...
    @property
    def direction(self) -> Literal["below", "above"]: ...
    @property
    def limit(self) -> float: ...


@dataclass(frozen=True)
class Score:
    """A metric's value and interval; each is None where it was not measured or is not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, measured: Any) -> Score:
        """From a number, a mapping with `value` (and `low`, `high`), a Score, or None."""
        if isinstance(measured, Score):
            return cls(_finite(measured.value), _finite(measured.low), _finite(measured.high))
        if isinstance(measured, Mapping):
            return cls(*(_finite(measured.get(key)) for key in ("value", "low", "high")))
        return cls(_finite(measured))


@dataclass(frozen=True)
class Champion:
    """Who holds the title.

    Attributes:
        version: its version in the registry.
        score: its Frechet distance under the candidate's conditions; None where it cannot be had.
        why_not: the reason, where `score` is None.
        how: "stored" (scored earlier under equal conditions) or "scored again" (now, under the candidate's).
    """

    version: str
    score: Score | None
    why_not: str = ""
    how: str = "stored"


@dataclass(frozen=True)
class RuleResult:
    """One rule, the value it met, and whether it holds."""

    metric: str
    value: float | None
    low: float | None
    high: float | None
    direction: str
    limit: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """The gate's answer.

    Attributes:
        passed: whether every rule holds.
        reasons: why not, one sentence a rule that does not hold; empty if it passed.
        rules: every rule with its value.
        champion: the comparison with the champion, or None where there is none or none was asked for.
    """

    passed: bool
    reasons: tuple[str, ...]
    rules: tuple[RuleResult, ...]
    champion: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "rules": [asdict(rule) for rule in self.rules],
            "champion": self.champion,
        }


def judge(
    metrics: Mapping[str, Any], rules: Sequence[Rule], champion: Champion | None = None, *, compare: bool = True
) -> Verdict:
    """Hold a candidate's metrics against the rules and, if `compare`, against the champion.

    A rule holds where value <= limit ("below") or value >= limit ("above"); the value is the plain estimate, its
    interval is only reported. A metric that is missing or not finite holds no rule. Against the champion a candidate
    fails where its Frechet distance lies above the upper end of the champion's interval: a rise within the champion's
    own uncertainty is not worse. A champion that has no score under the candidate's conditions refuses, too: nobody
    can say that the candidate is not worse.

    Args:
        metrics: name -> a number, or a mapping with value, low and high.
    """
    results, reasons = [], []
    for rule in rules:
        score = Score.of(metrics.get(rule.metric))
        good = score.value is not None and (
            score.value <= rule.limit if rule.direction == "below" else score.value >= rule.limit
        )
        results.append(
            RuleResult(rule.metric, score.value, score.low, score.high, rule.direction, float(rule.limit), good)
        )
        if not good:
            reasons.append(_refusal(rule, score, metrics))
    compared = None
    if champion is not None and compare:
        compared, reason = _compare(Score.of(metrics.get(CHAMPION_METRIC)), champion)
        if reason:
            reasons.append(reason)
    return Verdict(not reasons, tuple(reasons), tuple(results), compared)


def _refusal(rule: Rule, score: Score, metrics: Mapping[str, Any]) -> str:
    if rule.metric not in metrics:
        return f"{rule.metric} was not measured; there are: {', '.join(sorted(metrics)) or 'no metrics'}"
    if score.value is None:
        return f"{rule.metric} has no finite value (got {metrics[rule.metric]!r:.80})"
    side = "at most" if rule.direction == "below" else "at least"
    return f"{rule.metric} is {score.value:.6g}, must be {side} {rule.limit:g}"


def _compare(score: Score, champion: Champion) -> tuple[dict[str, Any], str]:
    theirs = champion.score or Score(None)
    bound = theirs.high if theirs.high is not None else theirs.value
    passed = score.value is not None and bound is not None and score.value <= bound
    if passed:
        reason = ""
    elif bound is None:
        reason = (
            f"cannot be compared with champion version {champion.version}: {champion.why_not or 'it has no score'}; "
            "promote by hand, or set gate.not_worse_than_champion to false"
        )
    elif score.value is None:
        reason = f"{CHAMPION_METRIC} has no finite value to compare with champion version {champion.version}"
    else:
        reason = (
            f"{CHAMPION_METRIC} {score.value:.6g} is worse than champion version {champion.version}'s "
            f"{theirs.value:.6g} beyond its interval (up to {bound:.6g})"
        )
    compared = {
        "version": champion.version,
        "metric": CHAMPION_METRIC,
        "value": theirs.value,
        "low": theirs.low,
        "high": theirs.high,
        "how": champion.how if bound is not None else None,
        "passed": passed,
    }
    return compared, reason


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "__float__")):
        return None
    number = float(value)
    return number if math.isfinite(number) else None
