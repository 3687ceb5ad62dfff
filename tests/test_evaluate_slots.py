"""Facts about an evaluation in slots: the same scores however many there are, one clock, and none does work twice."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from evaluate_world import SETTINGS, evaluate, gather, make_workspace, run_stage, untimed

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.metrics import timing
from mlx_tasks.metrics.latency import Latency


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A workspace in which all before the scoring has run."""
    root = tmp_path_factory.mktemp("inputs")
    make_workspace(root)
    for stage in ("features", "image_text"):
        run_stage(root, stage)
    return root


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """(root, scores.json) of an evaluation in one slot."""
    root = copied(inputs, tmp_path_factory.mktemp("whole"))
    return root, evaluate(root, slots=[0])


@pytest.fixture(scope="module")
def spread(inputs, tmp_path_factory):
    """(root, scores.json) of one in three, the last slot first."""
    root = copied(inputs, tmp_path_factory.mktemp("spread"))
    for slot in (2, 1, 0):
        run_stage(root, "score_share", slot, slots=[0, 1, 2])
    return root, gather(root, slots=[0, 1, 2])


@pytest.fixture
def mine(spread, tmp_path):
    """A copy of the one in three, to be spoiled."""
    return copied(spread[0], tmp_path)


def copied(source, target):
    shutil.copytree(source / "work", target / "work")
    return target


def part(root, slot):
    return root / "work" / "scores_parts" / str(slot) / "part.json"


def test_three_slots_give_what_one_gives_bit_for_bit_but_for_the_clock(whole, spread):
    one, three = whole[1], spread[1]
    assert [untimed(row) for row in three["rows"]] == [untimed(row) for row in one["rows"]]
    assert [list(row) for row in three["rows"]] == [list(row) for row in one["rows"]]
    for key in ("sanity", "left_out", "teacher"):
        assert three[key] == one[key]
    assert {**three["setup"], "scored_by": 0} == {**one["setup"], "scored_by": 0}
    for key in ("metric", "best", "bound", "because", "rule", "set_aside"):  # latency chooses among the eligible
        assert three["winner"][key] == one["winner"][key]
    assert three["winner"]["eligible"] == one["winner"]["eligible"]
    grids = [root / "work" / "scores" / "grids" for root, _ in (whole, spread)]
    for row in one["rows"]:
        first, second = ((folder / f"{row['candidate']}.png").read_bytes() for folder in grids)
        assert first == second


def test_with_equal_latencies_the_winner_is_the_same_too(whole, spread, tmp_path, monkeypatch):
    told = []

    def one_clock(run, batch, repeats):
        return Latency(2.0, 1.0, 4.0, repeats, batch)

    monkeypatch.setattr(timing, "measure_latency", one_clock)
    for name, (root, _), slots in (("one", whole, [0]), ("three", spread, [0, 1, 2])):
        (tmp_path / name).mkdir()
        told.append(gather(copied(root, tmp_path / name), slots=slots))
    assert told[0]["winner"] == told[1]["winner"]
    strips = [tmp_path / name / "work" / "scores" / "grids" / "strip-winner.png" for name in ("one", "three")]
    assert strips[0].read_bytes() == strips[1].read_bytes()
    assert told[0]["rows"][-1]["metrics"]["images_per_second"] == {"value": 500.0, "low": 250.0, "high": 1000.0}


def test_every_slot_scored_its_share_and_timed_nothing(spread):
    root, scores = spread
    parts = [read_json(part(root, slot)) for slot in range(3)]
    names = [[row["candidate"] for row in one["rows"]] for one in parts]
    assert sorted(itertools.chain(*names)) == sorted(row["candidate"] for row in scores["rows"])
    assert all(names) and max(map(len, names)) < len(scores["rows"])
    for one in parts:
        for row in one["rows"]:
            assert row["latency_ms"] is None and "latency_ms" not in row["metrics"]
        files = {path.stem for path in part(root, one["slot"]).parent.glob("*.png")}
        assert files == {row["candidate"] for row in one["rows"]}
    by = scores["setup"]["scored_by"]
    assert [(one["slot"], one["rows"]) for one in by] == [(slot, len(names[slot])) for slot in range(3)]
    assert all(one["seconds"] > 0 and one["hardware"] == scores["setup"]["hardware"] for one in by)


def test_latencies_are_all_of_the_gathering_and_measured_anew_by_a_second_one(spread, tmp_path, monkeypatch):
    """Eleven candidates do seven kinds of work: bundle, evaluations, solver."""
    root, scores = spread
    timed = [row for row in scores["rows"] if row["kind"] != "reference"]
    assert all(row["latency_ms"] == row["metrics"]["latency_ms"]["value"] > 0 for row in timed)
    measured, real = [], timing.measure_latency
    monkeypatch.setattr(timing, "measure_latency", lambda *a: (measured.append(a[1]), real(*a))[1])
    again = gather(copied(root, tmp_path), slots=[0, 1, 2])
    assert len(timed) == 11 and measured == [4] * 7
    assert [untimed(row) for row in again["rows"]] == [untimed(row) for row in scores["rows"]]


def test_more_slots_than_rows_is_fine_and_an_idle_one_opens_no_extractor(inputs, tmp_path):
    root, few = copied(inputs, tmp_path), {"nfe": [1], "samples": 32, "bootstrap": 10}
    write_json(root / "work" / "schedules" / "schedules.json", {"rows": []})
    alone = evaluate(root, slots=[0], **few)
    assert len(alone["rows"]) == 9
    judge = (root / "work" / "features").rename(tmp_path / "features")
    run_stage(root, "score_share", 9, slots=list(range(10)), **few)
    idle = read_json(part(root, 9))
    assert idle["rows"] == [] and idle["setup"] is None
    judge.rename(root / "work" / "features")
    scores = evaluate(root, slots=list(range(10)), **few)
    assert [untimed(row) for row in scores["rows"]] == [untimed(row) for row in alone["rows"]]
    assert [one["rows"] for one in scores["setup"]["scored_by"]] == [1] * 9 + [0]


@pytest.mark.slow
def test_a_slot_killed_with_sigkill_goes_on_with_the_rows_it_has(inputs, whole, tmp_path):
    """The real command, killed after its third row and run again: those rows are not made again."""
    root = copied(inputs, tmp_path)
    changed = {"train": {"resolutions": [8], "steps": 10}, "model": {"block_out_channels": [8, 16]}}
    changed["model"]["norm_num_groups"] = 4
    changed["evaluate"] = SETTINGS | {"slots": [0]}
    (root / "params.yaml").write_text(yaml.safe_dump(changed))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLX_TASKS_LOCKS": str(tmp_path / "locks")}
    (tmp_path / "locks").mkdir()
    command = [sys.executable, "-m", "mlx_tasks", "score_share", "--slot", "0", "--root", str(root)]
    kept = root / ".checkpoints" / "score_share@0" / "rows"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while len(rows_of(kept)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = rows_of(kept)
    assert 3 <= len(before) < len(whole[1]["rows"]) and not part(root, 0).exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {row["candidate"]: row for row in read_json(part(root, 0))["rows"]}
    assert {name: after[name]["seconds"] for name in before} == before  # their clocks are the first try's
    assert [untimed(row) for row in gather(root, slots=[0])["rows"]] == [untimed(row) for row in whole[1]["rows"]]
    assert not kept.exists()


def rows_of(folder):
    """Row -> its seconds."""
    found = {path.stem: path for path in folder.glob("[!.]*.json") if path.stem != "inputs"}
    return {name: json.loads(path.read_text())["seconds"] for name, path in found.items()}


def test_a_slot_that_the_params_do_not_have_is_refused(inputs):
    with pytest.raises(DataError, match=r"evaluate.slots has no slot 3, only \[0, 1, 2\]"):
        run_stage(inputs, "score_share", 3, slots=[0, 1, 2])


def test_a_missing_slot_is_named(mine):
    shutil.rmtree(part(mine, 1).parent)
    with pytest.raises(DataError, match=r"slots \[1\] have scored nothing: run `mlx-tasks score_share --slot 1`"):
        gather(mine, slots=[0, 1, 2])


def test_parts_of_another_number_of_slots_are_refused_and_no_scores_are_written(mine):
    before = (mine / "work" / "scores" / "scores.json").read_bytes()
    with pytest.raises(DataError, match="slot 0 was scored as one of 3, the params now have 2"):
        gather(mine, slots=[0, 1])
    assert (mine / "work" / "scores" / "scores.json").read_bytes() == before


def test_parts_from_other_inputs_are_refused(mine):
    run_stage(mine, "score_share", 1, slots=[0, 1, 2], bootstrap=21)
    with pytest.raises(DataError, match="slots 0 and 1 were scored from other bundles, params or code"):
        gather(mine, slots=[0, 1, 2])


def test_a_bundle_that_changed_after_it_was_scored_is_refused(mine):
    students = mine / "work" / "students"
    shutil.rmtree(students / "steps_2")
    shutil.copytree(students / "steps_1", students / "steps_2")
    with pytest.raises(DataError, match="student-steps2 changed since it was scored"):
        gather(mine, slots=[0, 1, 2])


def test_a_candidate_that_came_or_went_after_the_scoring_is_refused(mine):
    path = mine / "work" / "schedules" / "schedules.json"
    rows = read_json(path)["rows"]
    write_json(path, {"rows": [*rows, {**rows[0], "grid": "late", "timesteps": [800, 100]}]})
    with pytest.raises(DataError, match="no slot scored searched-late-nfe2"):
        gather(mine, slots=[0, 1, 2])
    write_json(path, {"rows": rows[1:]})
    with pytest.raises(DataError, match="searched-uniform-nfe2: scored, and no candidate any more"):
        gather(mine, slots=[0, 1, 2])
