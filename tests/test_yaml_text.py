"""YAML within bounds: what stands for more than it says is refused before it is built; the rest is as PyYAML's."""

import os
import tracemalloc
from pathlib import Path

import pytest
import yaml

from mlx_tasks.data.sources import read_card
from mlx_tasks.errors import DataError
from mlx_tasks.params import load_config, parse_override
from mlx_tasks.yaml_text import parse_yaml, read_yaml

ROOT = Path(__file__).parents[1]
CARD = ROOT / "include" / "datasets" / "digits.yaml"

LISTS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "a list of lists of aliases": (LISTS, "stand for more than"),
    "merges of merges": (MERGES, "stand for more than"),
    "a long text by alias": (f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 100)}]", "stand for more than"),
    "a list that holds itself": ("&a [1, *a]", "line 1: an alias inside what it stands for"),
    "nested deeply": ("[" * 20_000, "nested too deeply"),
    "nested deeply, and closed": ("[" * 20_000 + "]" * 20_000, "nested too deeply"),
    "a key twice": ("train: {steps: 1}\nseed: 2\ntrain: {steps: 3}", "line 3: the key 'train' stands twice"),
    "a number of many digits": (f"a: {'9' * 5000}", "a value that YAML cannot build"),
    "a day that is none": ("a: 2024-99-99", "a value that YAML cannot build"),
    "an object of Python": ("!!python/object/apply:os.system ['true']", "is not YAML"),
    "a list as a key": ("? [a]\n: b", "is not YAML"),
    "longer than a megabyte": ("a: " + "x" * (1 << 20), "is longer than"),
    "two documents": ("a: 1\n---\nb: 2", "is not YAML"),
    "a control character": ("a: \x01", "is not YAML"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_stands_for_too_much_is_refused_in_little_memory(text, message):
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        parse_yaml(text, "the file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


def test_the_project_s_own_files_read_as_pyyaml_reads_them():
    files = [ROOT / "params.yaml", *(ROOT / "include").rglob("*.yaml")]
    assert len(files) >= 4
    for path in files:
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))
    shared = "base: &base {steps: 5}\nmore: {<<: *base, seed: 1}\nlist: [*base, *base]"
    assert parse_yaml(shared, "it") == yaml.safe_load(shared)


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(DataError, match="a named pipe, not a regular file"):
        load_config(tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*none\.yaml"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfea")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_yaml(tmp_path / "bytes.yaml")


def test_an_override_is_read_within_the_same_bounds():
    assert parse_override("train.steps=800") == ("train.steps", 800)
    with pytest.raises(DataError, match=r"train\.resolutions takes a list, as \[1, 2\], got '&a \[1, \*a\]'"):
        parse_override("train.resolutions=&a [1, *a]")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("captions", ["{label:500000000}"], "its only field, plain"),
        ("captions", ["{label:>{label}}"], "its only field, plain"),
        ("captions", ["{label.__class__}"], "its only field, plain"),
        ("captions", ["{label!r}"], "its only field, plain"),
        ("captions", ["{colour}"], "its only field, plain"),
        ("captions", ["a {label"], "its only field, plain"),
        ("captions", ["x" * 1001], "its only field, plain"),
        ("captions", [7], "its only field, plain"),
        ("captions", ["{label}", None], "its only field, plain"),
        ("captions", "a digit", "captions must be a list"),
        ("captions", [], "captions must be a list"),
        ("classes", 10, "classes must be a list"),
        ("classes", [[1]] * 10, "classes: .* is list, not text"),
        ("name", "x" * 201, "name must be text"),
        ("name", ["digits"], "name must be text"),
        ("loader", ["sklearn"], "loader must be one of"),
    ],
)
def test_a_card_s_texts_are_checked_before_an_image_is_made(tmp_path, key, value, message):
    card = yaml.safe_load(CARD.read_text(encoding="utf-8"))
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card | {key: value}))
    with pytest.raises(DataError, match=message):
        read_card(tmp_path / "card.yaml", 0)


def test_a_brace_of_its_own_is_text(tmp_path):
    card = yaml.safe_load(CARD.read_text(encoding="utf-8"))
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card | {"captions": ["{{{label}}}"]}))
    assert read_card(tmp_path / "card.yaml", 0).candidates[0].caption == "{zero}"
