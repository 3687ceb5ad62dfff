"""The ablation runner: what a part switches, and a real run of the smallest chain by DVC, twice."""

import json
import os
import subprocess
import sys

import pytest
from test_end_to_end import clone_with_edits

from mlx_tasks.ablation.commands import rows
from mlx_tasks.ablation.parts import PARTS, find_parts, switched_off
from mlx_tasks.ablation.run import Result
from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.metrics.significance import Difference
from mlx_tasks.params import parse_config


@pytest.mark.parametrize("name", PARTS)
def test_every_part_changes_the_params_and_only_its_own(name):
    off = switched_off(PARTS[name], Config())
    tree = Config().dump()
    for key, value in off.items():
        branch, leaf = key.split(".")
        assert tree[branch][leaf] != value
        tree[branch][leaf] = value
    changed = parse_config(tree)
    assert (changed == Config()) == (not off)  # sampling alone decides where nothing is switched
    assert all(key.startswith("train.") for key in off)


def test_what_is_off_already_or_unknown_is_said():
    off = parse_config({"train": {"guidance_scale": 1.0, "resolutions": [8]}})
    with pytest.raises(DataError, match=r"guidance is off in these params already \(train.guidance_scale\)"):
        switched_off(PARTS["guidance"], off)
    with pytest.raises(DataError, match="one resolution"):
        switched_off(PARTS["ladder"], off)
    with pytest.raises(DataError, match="no part named 'magic'; there are: ema, min_snr"):
        find_parts(["ema", "magic"])
    assert [part.name for part in find_parts([])] == list(PARTS)


def test_the_table_says_what_a_cost_means():
    def result(word, value):
        return Result("ema", "averaged weights", 0.1, 0.1 + value, Difference(value, 0.0, 1.0, word, 3), 3, 64)

    told = rows([result("worse", 0.3), result("inside the noise", 0.01), result("better", -0.2)])
    assert [row[-1] for row in told] == ["helps", "makes no difference that this can see", "hurts"]
    assert told[0][3] == "+0.3000 (+0.0000 to +1.0000)"
    assert rows([Result("x", "y", None, None, None, 0, 0, "it is off")])[0][-1] == "it is off"


@pytest.mark.e2e
def test_a_real_ablation_at_toy_size_and_again_without_training_anything(repository, tmp_path):
    clone_with_edits(repository, tmp_path / "clone")
    command = [sys.executable, "-m", "mlx_tasks.cli", "ablate", "--preset", "toy", "--parts", "ema", "--samples", "40"]
    command += ["--set", "train.resolutions=[8]", "--set", "train.steps=20", "--json"]
    environment = os.environ | {
        "ADO_REPOSITORY": str(tmp_path / "clone"),
        "ADO_STATE": str(tmp_path / "state"),
        "PYTHONPATH": str(tmp_path / "clone"),
        "MLX_TASKS_LOCKS": str(tmp_path / "locks"),
    }
    for variable in ("MLFLOW_TRACKING_URI", "MLX_TASKS_RUN_ID"):
        environment.pop(variable, None)

    def run():
        done = subprocess.run(command, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    first = run()
    assert (first[0]["part"], first[0]["seeds"], first[0]["samples"]) == ("ema", 1, 40)
    cost = first[0]["cost"]
    assert cost["low"] <= cost["value"] <= cost["high"]
    assert cost["value"] == pytest.approx(first[0]["without"] - first[0]["whole"])
    workspaces = sorted((tmp_path / "state" / "workspaces").iterdir())
    assert len(workspaces) == 2
    trained = [(w / "work" / "teacher" / "unet" / "diffusion_pytorch_model.safetensors") for w in workspaces]
    assert trained[0].read_bytes() != trained[1].read_bytes()
    times = [path.stat().st_mtime_ns for path in trained]
    assert run() == first
    assert [path.stat().st_mtime_ns for path in trained] == times  # nothing was trained again
