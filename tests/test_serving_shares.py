"""Facts about shares: nobody starves, callers get the same, and what is small does not wait for what is large."""

from collections import Counter
from dataclasses import dataclass

import pytest

from mlx_tasks.serving.shares import Shares


@dataclass(eq=False)
class Asked:
    """rows of a network call, and how many calls."""

    caller: str
    rows: int = 1
    calls: int = 10
    done: int = 0

    @property
    def cost(self):
        return float(self.rows * self.calls)

    @property
    def call_cost(self):
        return float(self.rows)


class Network:
    """Calls of so many rows, shared out as the worker does it."""

    def __init__(self, rows=32):
        self.rows, self.shares, self.live, self.work = rows, Shares(), [], Counter()
        self.ended = []

    def add(self, *asked):
        for one in asked:
            self.shares.add(one)
            self.live.append(one)
        return asked[0]

    def call(self):
        rows = 0
        for one in self.shares.order(self.live):
            if rows and rows + one.rows > self.rows:
                continue
            rows += one.rows
            one.done += 1
            self.work[one.caller] += one.rows
            self.shares.charge(one, one.rows)
        for one in [one for one in self.live if one.done == one.calls]:
            self.live.remove(one)
            self.shares.remove(one)
            self.ended.append(one)

    def calls_until(self, one):
        count = 0
        while one in self.live:
            self.call()
            count += 1
        return count


def test_equal_requests_of_one_caller_end_in_the_order_in_which_they_came():
    network = Network(rows=4)
    asked = [Asked("a") for _ in range(20)]
    for one in asked:
        network.add(one)
        network.call()
    while network.live:
        network.call()
    assert network.ended == asked


def test_a_greedy_caller_gets_no_more_than_the_others():
    network = Network(rows=32)
    network.add(*[Asked("greedy", 32, 200) for _ in range(18)])
    network.add(*[Asked(name, 8, 400) for name in ("b", "c") for _ in range(2)])
    for _ in range(600):
        network.call()
    assert network.work["b"] == network.work["c"]
    assert network.work["greedy"] == pytest.approx(network.work["b"], abs=64)


@pytest.mark.parametrize("caller", ["greedy", "another"])
@pytest.mark.parametrize("before", [0, 50, 1000])
def test_a_small_request_waits_for_no_large_one(caller, before):
    """Even where all come from one address; it was 3600 calls behind eighteen large ones."""
    network = Network(rows=32)
    network.add(*[Asked("greedy", 32, 200) for _ in range(18)])
    for _ in range(before):
        network.call()
    small = network.add(Asked(caller, 1, 4))
    assert network.calls_until(small) <= 8


def test_small_requests_without_end_starve_no_large_one():
    network = Network(rows=32)
    large = network.add(Asked("a", 32, 20))
    count = 0
    while large in network.live and count < 500:
        network.add(Asked("a", 4, 4))
        network.call()
        count += 1
    assert large not in network.live


def test_who_was_away_brings_no_claim_along():
    network = Network(rows=1)
    network.add(Asked("a", 1, 1000))
    for _ in range(500):
        network.call()
    network.add(Asked("b", 1, 1000))
    before = dict(network.work)
    for _ in range(100):
        network.call()
    assert network.work["a"] - before["a"] == pytest.approx(50, abs=1) == network.work["b"]


def test_the_work_before_a_request_is_what_would_be_drawn_before_it():
    shares, waiting = Shares(), [Asked("a", 32, 200), Asked("a", 1, 10), Asked("b", 1, 1)]
    for one in waiting:
        shares.add(one)
    assert shares.before("a", 4.0, waiting) == 0
    assert shares.before("a", 10.0, waiting) == 10
    assert shares.before("a", 6400.0, waiting) == 6410
    assert shares.before("c", 1e9, waiting) == 0


def test_what_left_is_forgotten():
    shares, one, other = Shares(), Asked("a"), Asked("b")
    shares.add(one)
    shares.remove(one)
    shares.remove(one)
    shares.charge(one, 5.0)
    shares.add(other)
    assert shares.order([other]) == [other] and list(shares._callers) == ["b"]
