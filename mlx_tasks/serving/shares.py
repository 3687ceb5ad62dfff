"""Whose turn it is: callers share the network evenly, and a caller's small request does not wait for a large one.

Work is counted in pixel evaluations: images x network evaluations of an image (guidance included) x pixels of an image.
Among callers, who was served least goes first (start-time fair queueing). Among one caller's requests, the one goes
first that would end first if all were drawn at the same pace (Parekh and Gallager 1993, fair queueing's finish times):
none waits for ever, and equal ones are drawn in the order in which they came.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Request(Protocol):
    """What shares are given to.

    Attributes:
        caller: whose it is.
        cost: its work in all (pixel evaluations).
        call_cost: its part of one network call.
    """

    caller: str

    @property
    def cost(self) -> float: ...

    @property
    def call_cost(self) -> float: ...


R = TypeVar("R", bound=Request)


@dataclass(eq=False)
class _Caller(Generic[R]):
    """A caller with requests.

    Attributes:
        served: work done for it, from where the others stood when it came.
        clock: work done for each of its requests, had they been drawn at the same pace.
        ends: finish time and arrival of each request.
    """

    served: float
    clock: float = 0.0
    ends: dict[R, tuple[float, int]] = field(default_factory=dict)


class Shares(Generic[R]):
    """The callers with requests, and what each has got."""

    def __init__(self) -> None:
        self._callers: dict[str, _Caller[R]] = {}
        self._floor = 0.0
        self._numbers = itertools.count()

    def add(self, request: R) -> None:
        """A request came."""
        caller = self._callers.get(request.caller)
        if caller is None:
            caller = self._callers[request.caller] = _Caller(self._least())
        caller.ends[request] = (caller.clock + request.cost, next(self._numbers))

    def remove(self, request: R) -> None:
        """A request ended, or left."""
        caller = self._callers.get(request.caller)
        if caller is None or caller.ends.pop(request, None) is None or caller.ends:
            return
        self._floor = self._least()
        del self._callers[request.caller]

    def charge(self, request: R, work: float) -> None:
        """Work was done for a request."""
        caller = self._callers.get(request.caller)
        if caller is not None and request in caller.ends:
            caller.served += work
            caller.clock += work / len(caller.ends)

    def before(self, caller: str, cost: float, waiting: Iterable[R]) -> float:
        """Work of a caller's waiting requests that would be drawn before a new one of that cost."""
        held = self._callers.get(caller)
        if held is None:
            return 0.0
        end = held.clock + cost
        return sum(one.cost for one in waiting if one in held.ends and held.ends[one][0] <= end)

    def order(self, requests: Iterable[R]) -> list[R]:
        """Requests in the order in which they would get the next places in network calls."""
        queues: dict[str, list[tuple[tuple[float, int], R]]] = {}
        for one in requests:
            queues.setdefault(one.caller, []).append((self._callers[one.caller].ends[one], one))
        heap: list[tuple[float, int, str]] = []
        for name, queue in queues.items():
            queue.sort(key=lambda entry: entry[0], reverse=True)  # the next is the last
            heap.append((self._callers[name].served, queue[-1][0][1], name))
        heapq.heapify(heap)
        ordered: list[R] = []
        while heap:
            served, _, name = heapq.heappop(heap)
            one = queues[name].pop()[1]
            ordered.append(one)
            if queues[name]:
                heapq.heappush(heap, (served + one.call_cost, queues[name][-1][0][1], name))
        return ordered

    def _least(self) -> float:
        return max(self._floor, min((one.served for one in self._callers.values()), default=self._floor))
