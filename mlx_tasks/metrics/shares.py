"""Which slot scores what: every row once, the slots' loads as equal as a simple rule makes them."""

from __future__ import annotations

from collections.abc import Sequence

OVERHEAD = 300_000
"""Parameters whose arithmetic takes as long as what an evaluation costs before any.

Fitted to the rows of a demo run on a CPU at 16 pixels: 1.9 ms an evaluation and image and 5.5 ns a parameter, networks
of 20 to 400 thousand. Scoring an image took 1.8 ms, as much as one evaluation's overhead.
"""


def entry_cost(nfe: int = 0, parameters: int = 0, seeds: int = 1) -> int:
    """What a row costs an image, in parameters evaluated: seeds * (nfe * (OVERHEAD + parameters) + OVERHEAD).

    nfe: network evaluations, 0 where nothing is drawn; seeds: how often all of it is done.
    """
    return seeds * (nfe * (OVERHEAD + parameters) + OVERHEAD)


def share_out(costs: Sequence[float], slots: int) -> list[list[int]]:
    """The rows of each slot, rising: the dearest first, each to the slot with the least so far, the first of equals.

    The largest load is at most 4/3 - 1/(3 slots) of the least possible.  Raises: ValueError for less than one slot.
    Source: Graham 1969, Theorem 2 (longest processing time first).
    """
    if slots < 1:
        raise ValueError(f"there must be at least one slot, got {slots}")
    loads: list[float] = [0] * slots
    taken: list[list[int]] = [[] for _ in range(slots)]
    for row in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        slot = loads.index(min(loads))
        loads[slot] += costs[row]
        taken[slot].append(row)
    return [sorted(rows) for rows in taken]
