"""Facts about which registered model a dataset's versions go to, and which it never enters."""

import hashlib
import shutil

import pytest
import yaml
from registry_workspace import make_workspace, run_register

from mlx_tasks.cli import main
from mlx_tasks.config import Config, Gate
from mlx_tasks.errors import DataError
from mlx_tasks.params import load_config
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.registry.model_name import name_of_dataset, with_model_name
from mlx_tasks.registry.same_data import (
    SOURCE_TAG,
    DataIdentity,
    identity_of_workspace,
    is_same,
    other_source_note,
    sketch,
    source_of,
)

pytest_plugins = ["mlflow_server"]


# ---- the name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("include/datasets/digits.yaml", "digits-sampler"),
        ("/data/Cats & Dogs", "cats-dogs-sampler"),
        ("/data/golden_retriever/", "golden-retriever-sampler"),
        ("/data/cats/images", "cats-images-sampler"),
        ("/data/dogs/images", "dogs-images-sampler"),
        ("/data/flowers/data/train", "flowers-data-train-sampler"),
        ("/images", "images-sampler"),
        ("/data/Blüten", "bluten-sampler"),
        ("/data/" + "x" * 200, "x" * 80 + "-sampler"),
    ],
)
def test_a_model_is_named_after_its_dataset(repository, path, name):
    assert name_of_dataset(repository, path) == name
    assert with_model_name(Config(data={"path": path}), repository).register_.model_name == name


def test_a_folder_without_latin_letters_has_a_name_of_its_own(repository):
    first, second = (name_of_dataset(repository, f"/data/{folder}") for folder in ("写真", "画像"))
    assert first.startswith("dataset-") and first.endswith("-sampler") and first != second


def test_a_name_that_is_told_stands(repository):
    told = Config(data={"path": "/data/cats"}, register={"model_name": "digits-sampler"})
    assert with_model_name(told, repository) == told


def test_the_demo_still_makes_the_digits_sampler_and_a_folder_with_its_preset_does_not(repository, capsys):
    assert load_config(repository, "demo").register_.model_name == "auto"
    assert main(["resolve", "--preset", "demo"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["register"]["model_name"] == "digits-sampler"
    assert main(["resolve", "--preset", "demo", "--set", "data.path=/data/birds"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["register"]["model_name"] == "birds-sampler"


# ---- the same data set, or another one


def identity(source, numbers):
    count, hashes = sketch([hashlib.sha256(str(number).encode()).hexdigest() for number in numbers])
    return DataIdentity(source, f"fingerprint of {len(numbers)}", count, hashes)


HERE = identity("folder:/a/cats", range(1000))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (identity("folder:/a/cats", range(5000, 6000)), True),  # the same folder, all images new
        (identity("folder:/b/cats", range(1000)), True),  # moved
        (identity("folder:/b/cats", range(3000)), True),  # moved and grown
        (identity("folder:/b/cats", range(100, 1000)), True),  # moved, some left out
        (identity("folder:/b/cats", range(1000, 2000)), False),
        (identity("folder:/b/cats", range(900, 1900)), False),  # a tenth in common
        (identity("card:digits", range(2000, 2100)), False),
    ],
)
def test_the_same_place_or_the_same_images_are_the_same_data_set(other, same):
    assert is_same(HERE, other.tags) is same and is_same(other, HERE.tags) is same


def test_a_sketch_fits_in_a_tag_and_a_damaged_one_tells_nothing():
    assert max(map(len, HERE.tags.values())) < 2000
    for damaged in ("", "{", "[]", '{"images": "x", "hashes": 3}'):
        assert not is_same(HERE, {SOURCE_TAG: "folder:/b", "mlx_tasks.data_sketch": damaged})


def test_a_source_is_the_same_from_every_workspace_of_a_checkout(tmp_path):
    from mlx_tasks.workspace.git import git

    for name in ("one", "two"):
        (tmp_path / name / "photos").mkdir(parents=True)
        (tmp_path / name / "photos" / "a.txt").write_text("x")
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "x")
        git(tmp_path / name, "worktree", "add", "-q", str(tmp_path / f"{name}-run"))
    of_run = source_of(tmp_path / "one-run", "photos")
    assert of_run == source_of(tmp_path / "one", str(tmp_path / "one" / "photos")) == f"folder:{tmp_path}/one/photos"
    assert of_run != source_of(tmp_path / "two-run", "photos")
    assert source_of(tmp_path / "one", "../elsewhere") == f"folder:{tmp_path}/elsewhere"


# ---- at the registry


def config(path, name="auto"):
    return Config(data={"path": str(path)}, gate=Gate(limits=[], not_worse=[]), register={"model_name": name})


@pytest.mark.e2e
def test_a_version_of_other_data_never_enters_a_registered_model(tracked, tmp_path, monkeypatch):
    registry = Registry(tracked.uri)
    first, second = tmp_path / "a" / "roses", tmp_path / "b" / "roses"
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "a")
    verdict = run_register(make_workspace(tmp_path / "wa"), config(first))
    assert (verdict["registered"]["name"], verdict["registered"]["version"]) == ("roses-sampler", "1")

    monkeypatch.setenv("MLX_TASKS_RUN_ID", "b")
    other = make_workspace(tmp_path / "wb", pictures=1)
    with pytest.raises(DataError, match=r"'roses-sampler' was made from folder:.*/a/roses.*register\.model_name"):
        run_register(other, config(second))
    assert not (other / "work" / "registered").exists()
    assert [one.version for one in registry.versions("roses-sampler")] == ["1"]
    assert registry.aliases("roses-sampler") == {"challenger": "1", "champion": "1"}
    assert run_register(other, config(second, "roses-of-b"))["registered"]["name"] == "roses-of-b"

    monkeypatch.setenv("MLX_TASKS_RUN_ID", "c")
    grown = make_workspace(tmp_path / "wc", weights=4, pictures=2)  # the first folder, with new images
    assert run_register(grown, config(first))["registered"]["version"] == "2"

    assert other_source_note(other, config(first, "roses-sampler")) == ""
    assert "this run reads folder:" in other_source_note(other, config(second, "roses-sampler"))


@pytest.mark.e2e
def test_a_model_from_before_there_were_sketches_is_told_by_its_champions_run(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "a")
    monkeypatch.setattr(DataIdentity, "tags", {})
    run_register(make_workspace(tmp_path / "wa"), config("include/datasets/digits.yaml", "old"))
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "b")
    photos = make_workspace(tmp_path / "wb", pictures=1)
    with pytest.raises(DataError, match="'old' was made from card:digits"):
        run_register(photos, config(tmp_path / "photos", "old"))
    assert run_register(photos, config("include/datasets/digits.yaml", "old"))["registered"]["version"] == "2"


def test_refused_images_are_not_in_the_sketch(tmp_path):
    import pandas as pd

    root = make_workspace(tmp_path)
    whole = identity_of_workspace(root, "include/datasets/digits.yaml")
    assert whole.images == 60 == len(whole.hashes) and whole.source == "card:digits"
    path = root / "work" / "dataset" / "manifest.parquet"
    frame = pd.read_parquet(path)
    frame.loc[frame.index[:10], "index"] = -1
    frame.to_parquet(path)
    assert identity_of_workspace(root, "include/datasets/digits.yaml").images == 50
    shutil.rmtree(root)
