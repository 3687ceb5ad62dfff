"""An evaluation on two machines without a common disk: what a slot needs comes by hash, a dead one's rows too."""

import json
import subprocess
import sys
import time
from pathlib import Path

import orchestration as o
import psutil
import pytest
import yaml
from evaluate_world import SETTINGS, evaluate, make_workspace, run_stage, untimed

from mlx_tasks.files import read_json

pytestmark = pytest.mark.slow

ASKED = SETTINGS | {"seeds": 4}
INPUTS = ("dataset", "teacher", "students", "searched", "schedules", "features", "image_text")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    make_workspace(root)
    for stage in ("features", "image_text"):
        run_stage(root, stage, **ASKED)
    return root


@pytest.fixture(scope="module")
def machines(inputs, tmp_path_factory):
    """(here, there, the run): two environments whose clones, state and caches are their own, and one open run.

    The pipeline is dvc.yaml's own from the scoring on; one stage before it gives what all the others would have made.
    """
    folder = tmp_path_factory.mktemp("machines")
    made = o.make_repository(folder, real=("score_share", "evaluate"))
    stages = yaml.safe_load((made / "dvc.yaml").read_text())["stages"]
    before = {"cmd": f"mkdir -p work && cp -R {inputs}/work/. work", "outs": [f"work/{name}" for name in INPUTS]}
    kept = {"validate": before} | {name: stages[name] for name in ("score_share", "evaluate")}
    (made / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}))
    o.run_git(made, "commit", "-qam", "from the scoring on")
    o.run_git(folder, "clone", "-q", "--bare", str(made), str(folder / "hub.git"))
    shared = {"ADO_DVC_REMOTE": str(folder / "remote"), "ADO_GIT_REMOTE": "origin", "MLX_TASKS_EVENTS": "1"}
    both = []
    for name in ("here", "there"):
        o.run_git(folder, "clone", "-q", str(folder / "hub.git"), str(folder / name))
        both.append(o.environment(folder / name, folder / f"state-{name}", **shared))
    settings = {f"evaluate.{key}": value for key, value in ASKED.items()}
    model = {"model.block_out_channels": [8, 16], "model.norm_num_groups": 4}
    train = {"train.resolutions": [8], "train.steps": 10}
    return *both, o.open_run(both[0], overrides=settings | model | train)


@pytest.fixture(scope="module")
def scored(machines):
    """Slot 0 begun here, killed with all it started once rows of it are in the store, and ended there; slot 1 here."""
    here, there, run = machines
    locks = {"validate": o.node(here, run, "validate")[1]["lock"]}
    command = [sys.executable, "-m", "mlx_tasks", "node", "--spec", o.spec(run, "score_share", locks, slot=0)]
    process = subprocess.Popen(command, env=here, stdout=subprocess.DEVNULL, cwd=here["ADO_STATE"])
    index = Path(here["ADO_DVC_REMOTE"]) / "checkpoints" / run["slug"] / "score_share_0" / "index.json"
    deadline = time.monotonic() + 120
    while not (copied := copied_rows(index)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    root = psutil.Process(process.pid)
    for one in (*root.children(recursive=True), root):
        one.kill()
    process.wait()
    told = {0: o.node(there, run, "score_share", locks, slot=0), 1: o.node(here, run, "score_share", locks, slot=1)}
    assert [code for code, _, _ in told.values()] == [0, 0], told
    locks |= {f"score_share@{slot}": result["lock"] for slot, (_, result, _) in told.items()}
    code, _, output = o.node(there, run, "evaluate", locks)
    assert code == 0, output
    return {"copied": copied, "told": told, "gathered": output}


def copied_rows(index):
    """Rows in the store's copy of a slot's checkpoints -> their seconds."""
    try:
        files = json.loads(index.read_text())["files"]
        named = {Path(name).stem: digest for name, (digest, _) in files.items() if name.endswith(".json")}
        return {
            name: json.loads((index.parent / "objects" / digest).read_text())["seconds"]
            for name, digest in named.items()
            if name != "inputs"
        }
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def test_a_dead_slots_rows_are_not_made_again_on_the_other_machine(machines, scored):
    _, there, run = machines
    part = read_json(o.workspace(there, run) / "work" / "scores_parts" / "0" / "part.json")
    seconds = {row["candidate"]: row["seconds"] for row in part["rows"]}
    assert "brought the checkpoints of" in scored["told"][0][2]
    assert 0 < len(scored["copied"]) < len(seconds)
    assert {name: seconds[name] for name in scored["copied"]} == scored["copied"]


def test_each_machine_fetched_what_it_lacked_and_no_more(machines, scored):
    here, _, run = machines
    assert "brought " + ", ".join(f"work/{name}" for name in sorted(INPUTS)) in scored["told"][0][2]
    assert "brought work/scores_parts/1" in scored["gathered"]
    assert not (o.workspace(here, run) / "work" / "scores_parts" / "0").exists()  # nobody here asked for it


def test_two_machines_score_what_one_does(machines, scored, inputs):
    _, there, run = machines
    spread = read_json(o.workspace(there, run) / "work" / "scores" / "scores.json")
    alone = evaluate(inputs, **ASKED | {"slots": [0]})
    assert [untimed(row) for row in spread["rows"]] == [untimed(row) for row in alone["rows"]]
    assert spread["sanity"] == alone["sanity"] and spread["winner"]["eligible"] == alone["winner"]["eligible"]
