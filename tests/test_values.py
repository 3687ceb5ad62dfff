"""Values as a person types them after `KEY=`: text as typed, anything else by its rule."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import orchestration as o
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from orchestration import node, open_run, workspace
from PIL import Image
from ruamel.yaml import YAML

from mlx_tasks.cli import main
from mlx_tasks.config import Config
from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.form import form_of, overrides
from mlx_tasks.params import load_config, parse_config, parse_override, write_params

pytest_plugins = ["node_world"]

TEXTS = (
    "/Volumes/Disk #2/images", "/data/Trip: Rome", "/data/it's \"here\"", unicodedata.normalize("NFD", "/data/Köln é"),
    "1e3", "0o17", "0x1f", "on", "no", "null", "~", "!x", "&x", "*x", "%x", "@x", "`x", "[x", "{x", "- x", "? x",
    "| x", " x ", "a=b", "2026-01-01", "12:30", "0.1", ".inf", "", "'",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_typed(text, repository):
    assert parse_override(f"data.path={text}") == ("data.path", text)
    assert form_of(repository, [f"dataset={text}"]) == {"dataset": text}


@given(st.text())
def test_any_text_is_taken_as_typed(text):
    assert parse_override(f"data.path={text}")[1] == text


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_what_is_written_is_read_back_by_us_and_by_dvc(text, tmp_path):
    """PyYAML reads YAML 1.1 and DVC's ruamel reads 1.2: "1e3" is a number for the one alone."""
    tree = Config().dump()
    tree["data"]["path"] = text
    tree["train"]["learning_rate"] = 1e-5
    config = parse_config(tree)
    write_params(config, tmp_path / "params.yaml")
    assert load_config(tmp_path) == config
    read = YAML(typ="safe").load((tmp_path / "params.yaml").read_text())
    assert read == config.dump()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.steps=1e3", 1000), ("train.steps= 7", 7), ("train.learning_rate=1", 1),
        ("train.learning_rate=1e-4", 1e-4),
        ("gate.promote=off", False), ("gate.promote=True", True), ("tune.ppo_patience=null", None),
        ("train.resolutions=[8, 16]", [8, 16]), ("evaluate.weights=null", None), ("evaluate.weights=~/w #1", "~/w #1"),
        ("train={steps: 3}", {"steps": 3}), ("tune.methods=[ppo]", ["ppo"]), ("train.hosts=[on, off]", ["on", "off"]),
    ],
)  # fmt: skip
def test_other_values_are_read_by_what_their_key_takes(text, value):
    found = parse_override(text)[1]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((f"seed={value}", f"seed takes a whole number, got {value!r}") for value in
          ("on", "true", "010", "12:30", "1.5", "", "!x", "*x", "&x", "%", "@x", "{", "2026-01-01", "1_000",
           "~", "x: y")),
        ("train.learning_rate=fast", "train.learning_rate takes a number, got 'fast'"),
        ("gate.promote=1", "gate.promote takes true or false, got '1'"),
        ("tune.ppo_patience=x", "tune.ppo_patience takes a whole number or null, got 'x'"),
        ("train.resolutions=8", "train.resolutions takes a list"),
        ("train=3", "train takes a mapping"),
        ("seed", "set by KEY=VALUE, got 'seed'"),
        ("=3", "set by KEY=VALUE, got '=3'"),
        ("seed=" + "[" * 5000, "seed takes a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_rule(text, words, repository, capsys):
    with pytest.raises(DataError) as error:
        parse_override(text)
    assert words in str(error.value)
    assert main(["resolve", "--root", str(repository), "--set", text]) == ExitCode.BAD_INPUT
    assert words in capsys.readouterr().err


def test_a_key_that_there_is_none_of_is_named_whatever_its_value(repository, capsys):
    for command in ("resolve", "ablate"):
        arguments = [command, "--set", "train.stepz=*x"] + (["--root", str(repository)] if command == "resolve" else [])
        assert main(arguments) == ExitCode.BAD_INPUT
        assert "train.stepz" in capsys.readouterr().err


def test_the_form_is_filled_in_by_texts(repository):
    form = form_of(
        repository, ["promotion=on", "search_trials=2", "resolutions=[8]", "seed=3", "preset=toy", "reason=#1: x"]
    )
    assert form["reason"] == "#1: x" and form["preset"] == "toy"
    assert overrides(form) == {"gate.promote": True, "search.slots": [0, 1], "train.resolutions": [8], "seed": 3}
    with pytest.raises(DataError, match="search_trials takes a whole number or null, got 'two'"):
        form_of(repository, ["search_trials=two"])
    with pytest.raises(DataError, match="the form has no field 'steps'"):
        overrides(form_of(repository, ["steps=3"]))


@pytest.fixture(scope="module")
def validating(tmp_path_factory) -> Path:
    """A checkout whose validate stage is the real one."""
    return o.make_repository(tmp_path_factory.mktemp("values"), real=("validate",))


ODD = ("Disk #2/Trip: Rome", unicodedata.normalize("NFD", "Köln é"), 'it\'s "${here}" @ 100 %, *[x]{y}')


@pytest.mark.parametrize("name", ODD)
def test_a_dataset_of_any_name_goes_through_validate(validating, tmp_path, name):
    """As the form gives it, through open-run, dvc.yaml and DVC, and by `dvc repro` in the checkout."""
    folder = tmp_path / name
    for n in range(12):
        path = folder / ("cat", "dog")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    env = o.environment(validating, tmp_path / "state", MLX_TASKS_EVENTS="1")
    form = form_of(validating, [f"dataset={folder}", 'overrides={"data.min_images": 8, "train.resolutions": [8]}'])
    run = open_run(env, **form)
    code, result, output = node(env, run, "validate")
    assert (code, result["status"]) == (0, "ran"), output
    params = yaml.safe_load((workspace(env, run) / "params.yaml").read_text())
    assert params["data"]["path"] == str(folder)
    summary = json.loads((workspace(env, run) / "work" / "dataset" / "summary.json").read_text())
    assert sum(summary["splits"].values()) == 12
    assert str(folder) in [dep["path"] for dep in result["lock"]["deps"]]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.stepz=5", "did you mean train.steps?"), ("steps=5", "did you mean train.steps?"),
        ("Train.Steps=5", "did you mean train"), ("xyzzy=5", "`mlx-tasks resolve` prints all of them"),
        ("train.steps=" + "9" * 400, "train.steps must be at most 2^53"),
        ("data.path=~nobody-of-that-name/x", "is no path"),
    ],
)  # fmt: skip
def test_a_key_that_is_none_and_a_value_that_no_stage_could_use_are_told_with_a_remedy(
    setting, words, repository, capsys
):
    assert main(["resolve", "--root", str(repository), "--set", setting]) == ExitCode.BAD_INPUT
    assert words in capsys.readouterr().err


def test_a_preset_is_one_of_the_checkouts_and_no_other_file(repository, tmp_path):
    for name in ("../../params", str(repository / "params"), "../presets/demo", ".", "demo.yaml"):
        with pytest.raises(DataError, match=r"no preset named .*; there are: .*demo, toy"):
            load_config(repository, name)
    with pytest.raises(DataError, match="no preset named 'demo'; there are: none"):
        (tmp_path / "params.yaml").write_text("{}")
        load_config(tmp_path, "demo")


def test_the_form_says_how_a_key_of_params_is_given(repository):
    with pytest.raises(DataError, match=r"overrides=\{train.steps: ...\}"):
        overrides(form_of(repository, ["train.steps=5"]))
    with pytest.raises(DataError, match="an override's key is a dotted name"):
        load_config(repository, None, overrides(form_of(repository, ["overrides={1: 2}"])))
