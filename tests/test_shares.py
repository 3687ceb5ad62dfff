"""Facts about shares: every row once, loads near the best that any sharing reaches, nothing left to chance."""

import itertools

import numpy as np
import pytest

from mlx_tasks.metrics.shares import OVERHEAD, entry_cost, share_out


@pytest.mark.parametrize("slots", [1, 2, 3, 50])
def test_every_row_has_one_slot_and_stands_there_in_order(slots):
    costs = np.random.default_rng(slots).integers(1, 100, 40).tolist()
    shares = share_out(costs, slots)
    assert len(shares) == slots and sorted(itertools.chain(*shares)) == list(range(40))
    assert all(share == sorted(share) for share in shares)
    assert sum(not share for share in shares) == max(0, slots - 40)  # more slots than rows: some have nothing to do


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_load_is_within_grahams_bound_of_the_least_possible(seed):
    rng = np.random.default_rng(seed)
    costs, slots = rng.integers(1, 20, 8).tolist(), int(rng.integers(2, 4))

    def largest(owners):
        return max(sum(c for c, owner in zip(costs, owners, strict=True) if owner == slot) for slot in range(slots))

    least = min(largest(owners) for owners in itertools.product(range(slots), repeat=len(costs)))
    found = max(sum(costs[i] for i in share) for share in share_out(costs, slots))
    assert least <= found <= least * (4 / 3 - 1 / (3 * slots))


def test_equal_costs_go_round_and_the_worst_case_is_grahams_own():
    assert share_out([1, 1, 1, 1, 1], 2) == [[0, 2, 4], [1, 3]]
    assert [sum((5, 5, 4, 4, 3, 3, 3)[i] for i in share) for share in share_out([5, 5, 4, 4, 3, 3, 3], 3)] == [11, 8, 8]
    assert share_out([], 2) == [[], []]
    with pytest.raises(ValueError, match="at least one slot, got 0"):
        share_out([1], 0)


def test_a_rows_cost_counts_evaluations_and_the_networks_size_and_every_seed():
    assert entry_cost() == OVERHEAD
    assert entry_cost(8, 1_000_000) - entry_cost(4, 1_000_000) == 4 * (OVERHEAD + 1_000_000)
    assert entry_cost(8, 2_000_000) - entry_cost(8, 1_000_000) == 8_000_000
    assert entry_cost(8, 500, seeds=3) == 3 * entry_cost(8, 500)
