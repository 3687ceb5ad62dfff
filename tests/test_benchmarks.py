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
