"""Which candidates a slot scores when the time does not allow all: whole candidates, one kind after the other."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_tasks.metrics.entries import Entry


def in_turn(share: Sequence[Entry]) -> list[Entry]:
    """Reference sets first, then the kinds of candidates in turns, each kind's cheapest first; the refused ones last.

    So whatever the time allows, something of each kind is scored before a second of any.
    """
    kinds: dict[str, int] = {}
    place: dict[str, tuple[int, int, int]] = {}
    for entry in sorted(share, key=lambda one: one.cost):
        if not entry.kind:
            place[entry.name] = (0, 0, 0)
            continue
        group = 2 if entry.refused else 1
        key = f"{group}{entry.kind}"
        place[entry.name] = (group, kinds.get(key, 0), KINDS.index(entry.kind))
        kinds[key] = kinds.get(key, 0) + 1
    return sorted(share, key=lambda one: place[one.name])


KINDS = ("student", "searched", "teacher")


class Allowance:
    """The time that is left for candidates, by what those before cost.

    Reference sets and the first candidate are always scored; another one only if it is expected to end in time. What
    counts is the time of each row, also of those from before a kill, so that going on decides as never stopping would.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._allowed_s = None if max_minutes is None else 60 * max_minutes
        self._max_minutes = max_minutes
        self._spent_s = self._drawn_s = 0.0
        self._cost = 0.0

    def spend(self, entry: Entry, seconds: float) -> None:
        """Count a row that was made."""
        self._spent_s += seconds
        if entry.kind:
            self._drawn_s += seconds
            self._cost += entry.cost

    def refusal(self, entry: Entry) -> str:
        """Why a row is not made; empty where it is."""
        if self._allowed_s is None or not entry.kind or not self._cost:
            return ""
        expected_s = self._drawn_s / self._cost * entry.cost
        if self._spent_s + expected_s <= self._allowed_s:
            return ""
        return (
            f"not scored: about {expected_s:.3g} s more after {self._spent_s:.3g} s, and evaluate.max_minutes is "
            f"{self._max_minutes:g}"
        )
