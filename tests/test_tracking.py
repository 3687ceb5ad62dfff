"""Facts about the records of a stage: what is written is kept, shipped once, and never waited for."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from ports import free_port

from mlx_tasks.cli import main
from mlx_tasks.config import Config
from mlx_tasks.errors import BusyError, DataError, ExitCode, InterruptedStageError, UnavailableError
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.tracking import mlflow_tracker
from mlx_tasks.tracking.journal import Journal
from mlx_tasks.tracking.mlflow_tracker import LocalTracker, flatten, open_tracker
from mlx_tasks.tracking.rest import MlflowRest
from mlx_tasks.tracking.shipper import METRICS_A_BATCH, ship_once, ship_records
from mlx_tasks.workspace.mlflow_parent import experiment_note

pytest_plugins = ["mlflow_server"]

CONFIG = Config()


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def lines(root, target="train"):
    return list(Journal(root / ".run" / "records", target).entries())


def history(rest: MlflowRest, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric as MLflow holds it."""
    found, token = [], None
    while True:
        query = {"run_id": run_id, "metric_key": name, "max_results": 20000}
        answer = rest.call("GET", "metrics/get-history", query | ({"page_token": token} if token else {}))
        found += [(int(m.get("step", 0)), float(m["value"])) for m in answer.get("metrics", [])]
        token = answer.get("next_page_token")
        if not token:
            return sorted(found)


# ---- on disk


def test_without_a_server_every_record_is_a_line_of_the_journal(local):
    with open_tracker(local, "train", CONFIG) as tracker:
        assert isinstance(tracker, LocalTracker) and tracker.run_id is None
        tracker.params({"micro": {"batch": 32}})
        tracker.metrics({"train/loss": 0.5, "train/bad": float("nan"), "train/far": float("-inf")}, 3)
        tracker.image("grids/sample", np.zeros((4, 4, 3), np.uint8), 3)
    kinds = [entry["kind"] for entry in lines(local)]
    assert kinds == ["status", "params", "params", "metrics", "image", "status"]
    assert lines(local)[2]["values"] == {"micro.batch": "32"}
    assert lines(local)[3]["values"] == {"train/loss": 0.5, "train/bad": "NaN", "train/far": "-Infinity"}
    assert lines(local)[-1]["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(InterruptedStageError("told to stop"), "KILLED"), (OSError(), "FAILED")]
)
def test_the_last_status_says_how_the_stage_ended(local, error, status):
    with pytest.raises(type(error)), open_tracker(local, "train", CONFIG):
        raise error
    assert lines(local)[-1]["status"] == status


def test_an_attempt_after_a_kill_keeps_the_first_record_of_a_step_and_drops_the_second(local):
    with pytest.raises(KeyboardInterrupt), open_tracker(local, "train", CONFIG) as tracker:
        for step in range(10):
            tracker.metrics({"train/loss": step}, step)
        tracker.image("grid", np.zeros((2, 2), np.uint8), 8)
        raise KeyboardInterrupt
    with open_tracker(local, "train", CONFIG) as tracker:
        for step in range(6, 14):
            tracker.metrics({"train/loss": step + 100, "train/new": 1.0}, step)
        tracker.image("grid", np.zeros((2, 2), np.uint8), 8)
    told = [(e["step"], e["values"]["train/loss"]) for e in lines(local) if "train/loss" in e.get("values", {})]
    assert told == [(step, step if step < 10 else step + 100) for step in range(14)]
    assert sum("train/new" in e.get("values", {}) for e in lines(local)) == 8
    assert sum(e["kind"] == "image" for e in lines(local)) == 1


def test_a_finished_stage_or_other_params_start_a_journal_of_their_own(local):
    for steps in (1200, 1200, 900):
        config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"steps": steps})})
        with open_tracker(local, "train", config) as tracker:
            tracker.metrics({"train/loss": 1.0}, 0)
        assert sum(entry["kind"] == "metrics" for entry in lines(local)) == 1


def test_a_torn_last_line_is_cut_off_and_a_damaged_one_costs_only_itself(tmp_path):
    journal = Journal(tmp_path, "train")
    journal.append({"kind": "metrics", "n": 1})
    with journal.lines_path.open("ab") as file:
        file.write(b'{"kind": "met\xff\n' + b'{"kind": "metrics", "n": 2}\n{"kind": "me')
    journal.repair()
    journal.append({"kind": "metrics", "n": 3})
    assert [entry.get("n", entry["kind"]) for entry in journal.entries()] == [1, "damaged", 2, 3]


def test_reading_in_small_pieces_gives_every_line_once(tmp_path):
    journal = Journal(tmp_path, "train")
    for n in range(50):
        journal.append({"kind": "metrics", "n": n, "pad": "x" * (n * 7)})
    offset, seen = 0, []
    while True:
        entries, ends = journal.read(offset, limit=100)
        if not ends:
            break
        seen += [entry["n"] for entry in entries]
        offset = ends[-1]
    assert seen == list(range(50)) and offset == journal.lines_path.stat().st_size


def test_two_stages_cannot_record_the_same_target_at_once(local):
    with open_tracker(local, "train", CONFIG):
        with pytest.raises(BusyError, match=r"train\.jsonl"), open_tracker(local, "train", CONFIG):
            pass
        with open_tracker(local, "search_trial@0-1", CONFIG) as other:
            other.metrics({"search/error": 1.0}, 0)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((1, 4, 4, 3), np.uint8)])
def test_an_image_that_is_none_is_named(local, pixels):
    with open_tracker(local, "train", CONFIG) as tracker, pytest.raises(ValueError, match="uint8"):
        tracker.image("grid", pixels, 0)


def test_names_mlflow_would_refuse_are_refused_at_once(local):
    with open_tracker(local, "train", CONFIG) as tracker, pytest.raises(ValueError, match="loss%"):
        tracker.metrics({"loss%": 1.0}, 0)


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {"a.b.c": "1", "a.d": "[1, 2]", "e": "{}"}


# ---- MLflow away


def test_no_server_at_the_start_is_a_clear_error_before_any_work(tmp_path, monkeypatch):
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(mlflow_tracker, "START_PATIENCE_S", 0.5)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=f"{uri}.*make up"), open_tracker(tmp_path, "train", CONFIG):
        pytest.fail("the stage's work began")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns", "http://"])
def test_an_address_that_is_no_server_is_named(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(DataError, match=r"http\(s\) address"), open_tracker(tmp_path, "train", CONFIG):
        pass


# ---- a real server


@pytest.mark.e2e
def test_all_kinds_of_records_arrive(tracked, tmp_path, monkeypatch):
    rest = MlflowRest(tracked.uri)
    parent = rest.create_run(rest.experiment("optimize_diffusion"), "the run", {})
    monkeypatch.setenv("MLX_TASKS_MLFLOW_PARENT", parent)
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "manual-1")
    monkeypatch.setenv("MLX_TASKS_RUN_COMMIT", "c0ffee")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "ü x.txt").write_text("one")
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    with open_tracker(tmp_path, "search_trial@0-1", CONFIG) as tracker:
        tracker.params({"micro_batch": 16})
        tracker.tags({"note": "first"})
        tracker.tags({"note": "second"})
        for step in range(METRICS_A_BATCH + 50):
            tracker.metrics({"search/loss": step / 8, "search/rate": float("nan")}, step)
        tracker.image("grids/sample", pixels, 7)
        tracker.artifact(tmp_path / "folder", "kept")
        (tmp_path / "folder" / "inner" / "ü x.txt").write_text("changed after")
        run_id = tracker.run_id
    run = rest.run(run_id)
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert run["info"]["status"] == "FINISHED" and run["info"]["run_name"] == "search_trial@0-1"
    assert tags["mlflow.parentRunId"] == parent and tags["note"] == "second"
    assert (tags["mlx_tasks.run"], tags["mlx_tasks.commit"]) == ("manual-1", "c0ffee")
    assert (params["micro_batch"], params["train.steps"]) == ("16", "1200")
    assert history(rest, run_id, "search/loss") == [(step, step / 8) for step in range(METRICS_A_BATCH + 50)]
    assert all(value != value for _, value in history(rest, run_id, "search/rate"))

    from PIL import Image

    artifacts = tracked.folder / "artifacts" / run["info"]["experiment_id"] / run_id / "artifacts"
    (image,) = (artifacts / "images").glob("grids~sample+step+7+timestamp+*.png")
    assert np.array_equal(np.asarray(Image.open(image)), pixels)
    assert len(list((artifacts / "images").glob("grids~sample+step+7+*+compressed.webp"))) == 1
    assert tags["mlflow.loggedImages"] == "True"
    assert (artifacts / "kept" / "folder" / "inner" / "ü x.txt").read_text() == "one"


@pytest.mark.e2e
def test_shipping_again_after_a_lost_offset_adds_nothing(tracked, tmp_path):
    with open_tracker(tmp_path, "train", CONFIG) as tracker:
        for step in range(40):
            tracker.metrics({"train/loss": float(step)}, step)
        tracker.image("grid", np.zeros((3, 3), np.uint8), 1)
    journal, rest = Journal(tmp_path / ".run" / "records", "train"), MlflowRest(tracked.uri)
    journal.set_state(offset=0)
    assert ship_once(rest, journal) == len(lines(tmp_path))
    assert history(rest, tracker.run_id, "train/loss") == [(step, float(step)) for step in range(40)]
    info = rest.run(tracker.run_id)["info"]
    images = tracked.folder / "artifacts" / info["experiment_id"] / tracker.run_id / "artifacts" / "images"
    assert len(list(images.glob("*.png"))) == 1


STAGE = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from mlx_tasks.config import Config
    from mlx_tasks.tracking.mlflow_tracker import open_tracker
    first, last, pause = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with open_tracker(Path(sys.argv[1]), "train", Config()) as tracker:
        for step in range(first, last):
            tracker.metrics({"train/loss": 1 / (1 + step)}, step)
            print(step, flush=True)
            time.sleep(pause)
    assert "mlflow" not in sys.modules
    """
)


@pytest.mark.e2e
def test_a_stage_killed_and_resumed_some_steps_back_is_one_run_with_each_step_once(tracked, tmp_path):
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    first = subprocess.Popen([*command, "0", "100000", "0.002"], stdout=subprocess.PIPE, text=True)
    try:
        for line in first.stdout:
            if int(line) >= 900:
                break
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    journal = Journal(tmp_path / ".run" / "records", "train")
    run_id = journal.state()["run_id"]
    subprocess.run([*command, "700", "1500", "0"], check=True, stdout=subprocess.DEVNULL)
    assert journal.state()["run_id"] == run_id and journal.pending_bytes() == 0
    rest = MlflowRest(tracked.uri)
    assert history(rest, run_id, "train/loss") == [(step, 1 / (1 + step)) for step in range(1500)]
    assert rest.run(run_id)["info"]["status"] == "FINISHED"


@pytest.mark.e2e
def test_a_server_killed_in_the_middle_loses_nothing_and_doubles_nothing(tracked, tmp_path, monkeypatch):
    """Two stages at work when the server dies: one ends while it is away, the other lives to see it back."""
    with open_tracker(tmp_path, "distill", CONFIG) as staying:
        with open_tracker(tmp_path, "train", CONFIG) as leaving:
            for step in range(2000):
                staying.metrics({"distill/loss": float(step), "distill/rate": 2.0 * step}, step)
            time.sleep(1.2)  # so that the shipper is at work on these
            tracked.kill()
            for step in range(300):
                leaving.metrics({"train/loss": float(step)}, step)
            monkeypatch.setenv("MLX_TASKS_MLFLOW_PATIENCE_S", "0.5")
        # `train` ended while the server was away: no exception, since its own work succeeded
        monkeypatch.delenv("MLX_TASKS_MLFLOW_PATIENCE_S")
        assert Journal(tmp_path / ".run" / "records", "train").pending_bytes() > 0
        with pytest.raises(UnavailableError):
            ship_records(tmp_path, tracked.uri)
        slowest = 0.0
        for step in range(2000, 4000):
            started = time.monotonic()
            staying.metrics({"distill/loss": float(step), "distill/rate": 2.0 * step}, step)
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1.0  # no call waited for the server; the rest is this machine's noise
        tracked.start()
        staying.metrics({"distill/loss": 4000.0, "distill/rate": 8000.0}, 4000)
    rest = MlflowRest(tracked.uri)
    assert history(rest, staying.run_id, "distill/loss") == [(step, float(step)) for step in range(4001)]
    assert history(rest, staying.run_id, "distill/rate") == [(step, 2.0 * step) for step in range(4001)]
    # the stage that saw the server back took the other's records along
    assert history(rest, leaving.run_id, "train/loss") == [(step, float(step)) for step in range(300)]
    for tracker in (staying, leaving):
        assert rest.run(tracker.run_id)["info"]["status"] == "FINISHED"
    assert ship_records(tmp_path, tracked.uri) == {}


@pytest.mark.e2e
def test_a_run_deleted_at_the_server_is_made_again_with_all_its_records(tracked, tmp_path):
    with pytest.raises(KeyboardInterrupt), open_tracker(tmp_path, "train", CONFIG) as tracker:
        tracker.metrics({"train/loss": 1.0}, 0)
        raise KeyboardInterrupt
    rest = MlflowRest(tracked.uri)
    rest.call("POST", "runs/delete", {"run_id": tracker.run_id})
    with open_tracker(tmp_path, "train", CONFIG) as again:
        again.metrics({"train/loss": 0.5}, 1)
    assert again.run_id != tracker.run_id
    assert history(rest, again.run_id, "train/loss") == [(0, 1.0), (1, 0.5)]


@pytest.mark.e2e
def test_a_crash_between_making_the_run_and_noting_its_id_makes_no_second_run(tracked, tmp_path):
    with pytest.raises(KeyboardInterrupt), open_tracker(tmp_path, "train", CONFIG) as tracker:
        raise KeyboardInterrupt
    state = tmp_path / ".run" / "records" / "train.run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"run_id": None}))
    with open_tracker(tmp_path, "train", CONFIG) as again:
        pass
    assert again.run_id == tracker.run_id


@pytest.mark.e2e
def test_a_parameter_that_changed_costs_itself_and_no_other_record(tracked, tmp_path, caplog):
    with open_tracker(tmp_path, "train", CONFIG) as tracker:
        tracker.params({"micro_batch": 64})
        tracker.params({"micro_batch": 32, "fresh": 1})
        tracker.metrics({"train/loss": 1.0}, 0)
    params = {p["key"]: p["value"] for p in MlflowRest(tracked.uri).run(tracker.run_id)["data"]["params"]}
    assert (params["micro_batch"], params["fresh"]) == ("64", "1")
    assert "micro_batch" in caplog.text
    assert history(MlflowRest(tracked.uri), tracker.run_id, "train/loss") == [(0, 1.0)]


def test_the_tracker_imports_neither_mlflow_nor_mlx():
    code = "import sys, mlx_tasks.tracking.mlflow_tracker as t; print({'mlflow', 'mlx', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"


# ---- a server that takes metrics and no files


def record(root, caplog=None):
    with open_tracker(root, "train", CONFIG) as tracker:
        tracker.metrics({"train/loss": 1.0}, 1)
        tracker.image("grid", np.full((4, 4), 200, np.uint8), 1)
        (root / "notes.txt").write_text("kept")
        tracker.artifact(root / "notes.txt", "docs")
        tracker.metrics({"train/loss": 0.5}, 2)
        tracker.tags({"done": "yes"})


def files_of(rest, run_id, folder):
    rest.get_artifacts(rest.run(run_id)["info"]["artifact_uri"], folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.e2e
@pytest.mark.parametrize("root_uri", ["s3://somebodys-bucket/mlruns", "file:///srv/mlruns"])
def test_an_experiment_with_a_root_of_its_own_gets_the_metrics_and_the_files_can_follow(
    tracked, tmp_path, monkeypatch, caplog, root_uri
):
    rest, name = MlflowRest(tracked.uri), f"older-{root_uri[:4]}"
    rest.call("POST", "experiments/create", {"name": name, "artifact_location": root_uri})
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    record(tmp_path)
    told = caplog.text
    assert "metrics-only" in told and root_uri in told and "Set MLFLOW_EXPERIMENT_NAME to a name" in told
    assert told.index("metrics-only") < told.index("images_and_files_on_disk=2")
    journal = Journal(tmp_path / ".run" / "records", "train")
    first = journal.state()["run_id"]
    assert history(rest, first, "train/loss") == [(1, 1.0), (2, 0.5)]
    run = rest.run(first)
    assert run["info"]["status"] == "FINISHED" and {"key": "done", "value": "yes"} in run["data"]["tags"]
    assert len(journal.kept()) == 2 and journal.pending_bytes() > 0
    assert not (tmp_path / "srv").exists()

    assert main(["ship-records", "--root", str(tmp_path)]) == ExitCode.BAD_INPUT  # nothing has changed: still waiting
    assert len(journal.kept()) == 2
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{name}-new")
    assert main(["ship-records", "--root", str(tmp_path)]) == 0
    second = journal.state()["run_id"]
    assert second != first and journal.kept() == [] and journal.pending_bytes() == 0
    assert history(rest, second, "train/loss") == [(1, 1.0), (2, 0.5)]
    found = files_of(rest, second, tmp_path / "fetched")
    assert found[0] == "docs/notes.txt" and len(found) == 3 and found[1].startswith("images/grid+step+1")


@pytest.mark.e2e
def test_a_broken_store_behind_the_server_holds_back_no_metric(tracked, tmp_path, monkeypatch):
    rest = MlflowRest(tracked.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "broken-store")
    store, aside = tracked.folder / "artifacts", tracked.folder / "aside"
    if store.exists():
        store.rename(aside)
    store.write_text("no folder")
    try:
        record(tmp_path)
        journal = Journal(tmp_path / ".run" / "records", "train")
        run_id = journal.state()["run_id"]
        assert history(rest, run_id, "train/loss") == [(1, 1.0), (2, 0.5)]
        assert rest.run(run_id)["info"]["status"] == "FINISHED" and len(journal.kept()) == 2
    finally:
        store.unlink()
        if aside.exists():
            aside.rename(store)
    assert ship_records(tmp_path, tracked.uri) == {"train": 2}
    assert journal.kept() == [] and journal.state()["run_id"] == run_id
    assert len(files_of(rest, run_id, tmp_path / "fetched")) == 3


@pytest.mark.e2e
def test_no_version_is_made_whose_files_nobody_could_fetch(tracked, tmp_path, monkeypatch):
    from registry_workspace import make_workspace, run_register

    rest = MlflowRest(tracked.uri)
    rest.call("POST", "experiments/create", {"name": "files-elsewhere", "artifact_location": "file:///srv/mlruns"})
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "files-elsewhere")
    with pytest.raises(DataError, match=r"keeps files at file:///srv/mlruns.*Set MLFLOW_EXPERIMENT_NAME"):
        run_register(make_workspace(tmp_path), Config(gate={"limits": []}, register={"model_name": "nowhere"}))
    assert Registry(tracked.uri).versions("nowhere") == []
    assert "files-elsewhere" in experiment_note()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "broken-store")
    assert experiment_note() == ""
