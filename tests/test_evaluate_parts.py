"""Facts about the parts of evaluate: candidates, rows that are kept, timing, and sheets of pictures."""

from dataclasses import replace

import numpy as np
import pytest

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import write_json
from mlx_tasks.metrics import entries
from mlx_tasks.metrics.candidates import schedule_candidates, teacher_candidates
from mlx_tasks.metrics.latency import measure_latency
from mlx_tasks.metrics.pictures import GAP, class_rows, png_bytes, tile
from mlx_tasks.metrics.row_store import RowStore
from mlx_tasks.models.bundle import Sampler
from mlx_tasks.samplers.learned import LearnedSteps

NAMES = ["zero", "one", "two", "three"]
SCHEDULE = NoiseSchedule.cosine()


def test_rows_of_other_inputs_are_not_taken(tmp_path):
    store = RowStore(tmp_path / "rows", "a")
    assert store.put("x", {"value": 1}, b"png") == {"value": 1}
    assert RowStore(tmp_path / "rows", "a").get("x") == {"value": 1}
    assert RowStore(tmp_path / "rows", "b").get("x") is None
    assert RowStore(tmp_path / "rows", "a").get("x") is None


def test_the_teachers_budgets_count_both_guidance_branches():
    sampler = Sampler("ddim", (999,), 2.0, 2, 8, 1, ("a",), 1)
    guided, _ = teacher_candidates("work/teacher", sampler, SCHEDULE, [8])
    assert {(c.nfe, len(c.timesteps)) for c in guided} == {(8, 4)}
    plain, _ = teacher_candidates("work/teacher", replace(sampler, guidance_scale=1.0, nfe=1), SCHEDULE, [8])
    assert {(c.nfe, len(c.timesteps)) for c in plain} == {(8, 8)}


def test_equal_grids_are_scored_once():
    sampler = Sampler("ddim", (999,), 1.0, 1, 8, 1, ("a",), 1)
    learned = LearnedSteps((9.0, 0.5, 0.0), (8.0, 0.4), ((), (0.1,))).to_dict()
    shared = {"budget": 2, "timesteps": [900, 100]}
    rows = [{**shared, "grid": g, "solver": "ddim", "learned": None} for g in ("uniform", "ppo")]
    rows.append({**shared, "grid": "learned", "solver": "learned", "learned": learned})
    kept, left_out = schedule_candidates("work/searched", sampler, rows)
    assert [c.name for c in kept] == ["searched-uniform-nfe2", "searched-learned-nfe2"]
    assert left_out[0].reason == "the same grid as searched-uniform-nfe2"
    assert kept[1].steps(SCHEDULE).to_dict() == learned


def test_latency_is_the_median_of_repeats_an_image(monkeypatch):
    ticks = iter([0.0, 0.5, 10.0, 10.1, 20.0, 20.3])
    monkeypatch.setattr("mlx_tasks.metrics.latency.time.perf_counter", lambda: next(ticks))
    runs = []
    found = measure_latency(lambda: runs.append(1), batch=10, repeats=3)
    assert len(runs) == 4
    assert (found.low_ms, found.median_ms, found.high_ms) == pytest.approx((10, 30, 50))


def test_a_sheet_holds_a_row_a_class_with_gaps():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(4, 1).repeat(4, 2) * 10
    rows = class_rows(images, np.array([1, 0, 1, 0, 1, 1]), columns=3)
    assert rows[..., 0, 0, 0].tolist() == [[10, 30, 255], [0, 20, 40]]
    sheet = tile(rows)
    assert sheet.shape == (2 * (4 + GAP) + GAP, 3 * (4 + GAP) + GAP, 1)
    assert sheet[GAP, GAP, 0] == 10 and sheet[0, 0, 0] == 255
    assert class_rows(images, None, columns=4).shape[:2] == (2, 4)
    assert png_bytes(sheet)[:8] == b"\x89PNG\r\n\x1a\n"


def test_tables_of_another_shape_name_the_stage_to_run(tmp_path):
    write_json(tmp_path / "x.json", {"something": 1})
    with pytest.raises(DataError, match="run `mlx-tasks distill`"):
        entries.read_refusals(tmp_path / "x.json")
    with pytest.raises(DataError, match="run `mlx-tasks tune`"):
        entries.read_grids(tmp_path / "x.json")
