"""What the benchmarks leave: results that name how they were made, and nothing of the machine they were made on."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_a_script_that_is_there_and_no_path_of_a_machine(path):
    told = json.loads(path.read_text())
    words = told["command"].split()
    assert words[0] == "python" and (ROOT / words[1]).is_file()
    assert not [word for word in words if word.startswith(("/", "~"))]
    assert told["question"] and told["rows"] and told["device"]["chip"]


def test_the_demo_stands_above_its_floor_and_a_worse_one_would_not():
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    import demo_results

    told = json.loads((ROOT / "benchmarks" / "results" / "demo_results.json").read_text())
    floor, winner = json.loads(demo_results.FLOOR.read_text()), told["config"]["winner"]["candidate"]
    assert demo_results.below_floor(told["rows"], winner, floor) == []
    noise = "reference-noise"
    below = demo_results.below_floor(told["rows"], noise, floor)
    assert [line.split(" is ")[0] for line in below] == [
        "frechet_distance", "c2st_accuracy", "precision", "recall", "the winner",
    ]  # fmt: skip
    dear = [{**row, "nfe": 16} if row["candidate"] == winner else row for row in told["rows"]]
    assert demo_results.below_floor(dear, winner, floor) == ["the winner takes 16 evaluations, and the floor is 8"]


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--seeds", "--seeds"),
        ("work/searched", "work/searched"),
        ("/somewhere/run-1/work/searched", "WORKSPACE/work/searched"),
        ("/work/state/run-1/work/searched", "WORKSPACE/work/searched"),
        ("/somewhere/else", "FOLDER"),
        (str(ROOT / "benchmarks"), "benchmarks"),
    ],
)
def test_arguments_are_shown_without_the_machine(argument, shown):
    assert runpy.run_path(str(ROOT / "benchmarks" / "record.py"))["shown"](argument) == shown
