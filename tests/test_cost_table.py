"""The table of what an evaluation costs: what is timed, what is left alone, and that it is measured once."""

import json

import mlx.core as mx
import numpy as np
import pytest
from registry_workspace import write_small_bundle

from mlx_tasks.cli import main
from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.optimizing import cost_table as tables
from mlx_tasks.optimizing.cost_table import DTYPES, EvaluationCost, cost_table, fastest, measure_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bundle") / "b"
    write_small_bundle(made)
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(tables.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Clock:
    """A clock that only the denoiser moves: by the images it sees and how slow their format is."""

    def __init__(self, monkeypatch, slow):
        self.now, self.seen, self.slow = 0.0, [], slow
        monkeypatch.setattr(tables.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(tables, "_call", self.call)

    def call(self, bundle, model, dtype, batch, mode):
        name = next(name for name, known in DTYPES.items() if known == dtype)

        def run():
            self.seen.append((batch, name, mode))
            self.now += 0.001 * self.slow.get(name, 1.0) * (2 if mode != "none" else 1) * (batch + 1)
            return mx.zeros(1)

        return run


def test_each_way_is_timed_in_turn_and_slow_formats_are_left_alone(folder, monkeypatch):
    clock = Clock(monkeypatch, {"float16": 80.0, "bfloat16": 0.5})
    rows = measure_table(read_bundle(folder), (1, 4))
    found = {(row.batch, row.dtype, row.guidance): row.ms for row in rows}
    assert found[1, "float32", "none"] == pytest.approx(2.0) and found[4, "float32", "none"] == pytest.approx(1.25)
    assert found[4, "bfloat16", "apart"] == pytest.approx(1.25) and found[1, "float16", "none"] == pytest.approx(160)
    assert not any(batch == 4 and name == "float16" for batch, name, _ in found)
    first_round = clock.seen[:9]
    assert len(set(first_round)) == 9 and clock.seen[9:18] == first_round  # in turn, not one after the other


def test_it_is_measured_once_and_again_when_asked_or_damaged(folder, cache, monkeypatch):
    bundle, clock = read_bundle(folder), Clock(monkeypatch, {})
    first = cost_table(bundle, "M9", batches=(1,))
    calls = len(clock.seen)
    assert cost_table(bundle, "M9", batches=(1,)) == first and len(clock.seen) == calls
    cost_table(bundle, "M9", batches=(1,), again=True)
    assert len(clock.seen) == 2 * calls
    cost_table(bundle, "another chip", batches=(1,))
    assert len(clock.seen) == 3 * calls and len(list(cache.rglob("*.json"))) == 2
    for path in cache.rglob("*.json"):
        path.write_text("{")
    assert cost_table(bundle, "M9", batches=(1,)) == first and len(clock.seen) == 4 * calls


@pytest.mark.parametrize("name", DTYPES)
def test_a_network_in_another_format_draws_nearly_the_same(folder, name):
    bundle = read_bundle(folder)
    model = tables._cast(bundle.model, DTYPES[name])
    exact = np.array(tables._call(bundle, bundle.model, mx.float32, 3, "together")())
    other = tables._call(bundle, model, DTYPES[name], 3, "together")()
    assert other.dtype == DTYPES[name]
    np.testing.assert_allclose(np.array(other.astype(mx.float32)), exact, atol=0.1 if name == "bfloat16" else 0.02)


def test_the_fastest_way_of_a_call():
    rows = [
        EvaluationCost(1, "float32", "none", 3.0, 3.0, 3.0),
        EvaluationCost(8, "float32", "none", 2.0, 2.0, 2.0),
        EvaluationCost(8, "bfloat16", "none", 1.5, 1.0, 2.0),
        EvaluationCost(8, "float32", "apart", 3.5, 3.0, 4.0),
        EvaluationCost(8, "float32", "together", 4.0, 3.0, 4.0),
    ]
    assert fastest(rows, 7, guided=False) == rows[2] and fastest(rows, 1, guided=False) == rows[0]
    assert fastest(rows, 1, guided=True) == rows[3]
    with pytest.raises(DataError, match="holds no guided calls"):
        fastest(rows[:3], 1, guided=True)


def test_the_command_prints_a_table_or_json(folder, capsys):
    assert main(["device-cost", "--model", str(folder), "--batches", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["guidance"] for row in rows} == {"none", "together", "apart"} and len(rows) == 9
    assert all(0 < row["low_ms"] <= row["ms"] <= row["high_ms"] for row in rows)
    assert main(["device-cost", "--model", str(folder), "--batches", "2"]) == 0
    shown = capsys.readouterr().out
    assert (
        "both branches together in one batch" in shown and f"{rows[0]['ms']:.3g}" in shown
    )  # read back, not measured anew
    assert main(["device-cost", "--model", str(folder), "--batches", "0"]) == ExitCode.BAD_INPUT
    assert "batches must be whole numbers of at least 1" in capsys.readouterr().err
