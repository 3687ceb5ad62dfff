"""Facts about registration without a server: what a bundle says of itself, its pictures, its lineage."""

import io
import json
import subprocess
import threading

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from registry_workspace import CLASSES, SIDE, TIMESTEPS, make_workspace, read_verdict, run_register, write_small_bundle

from mlx_tasks.config import Config, Gate
from mlx_tasks.data.loader import load_split, to_uint8
from mlx_tasks.errors import DataError, GateRefused
from mlx_tasks.hardware import detect
from mlx_tasks.metrics.image_text import image_text_scores, load_image_text
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.registry import lineage
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.png import decode_png, encode_png
from mlx_tasks.registry.pyfunc import _load_pyfunc
from mlx_tasks.registry.reference import read_reference
from mlx_tasks.samplers import LearnedSteps, bundle_noise, sample_bundle


def config(name: str = "digits-sampler", **gate) -> Config:
    return Config(gate=Gate(**gate), register={"model_name": name})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "bundle"
    write_small_bundle(folder)
    return folder


# ---- pictures by class and seed


def test_an_image_is_what_the_bundle_draws_from_its_seed(small):
    bundle = read_bundle(small)
    expected = sample_bundle(bundle, bundle_noise(bundle, 9, 1), [2]).images
    assert np.array_equal(draw(bundle, [2], [9]), to_uint8(np.array(expected)))


def test_company_moves_an_image_by_rounding_only_and_repeats_it_exactly(small):
    bundle = read_bundle(small)
    together = draw(bundle, [0, -1, 2, 1], [4, 5, 4, 2**32 - 1])
    assert np.array_equal(together, draw(bundle, [0, -1, 2, 1], [4, 5, 4, 2**32 - 1]))
    for image, label, seed in zip(together, [0, -1, 2, 1], [4, 5, 4, 2**32 - 1], strict=True):
        alone = draw(bundle, [label], [seed])[0]
        assert np.abs(alone.astype(int) - image).max() <= 1
    assert not np.array_equal(together[0], together[2])  # the class matters
    assert draw(bundle, [], []).shape == (0, SIDE, SIDE, 1)


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([3], [0], r"class_label.*\[-1, 2\].* got 3"),
        ([-2], [0], "got -2"),
        ([0], [-1], "seed"),
        ([0], [2**32], "seed"),
        ([0], [], "1 and 0"),
    ],
)
def test_labels_and_seeds_out_of_range_are_named(small, labels, seeds, message):
    with pytest.raises(DataError, match=message):
        draw(read_bundle(small), labels, seeds)


def test_a_bundle_without_classes_takes_any_label(tmp_path):
    write_small_bundle(tmp_path / "plain", classes=())
    bundle = read_bundle(tmp_path / "plain")
    assert np.array_equal(draw(bundle, [-1], [1]), draw(bundle, [0], [1]))


def test_pngs_keep_pixels_and_text():
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
        data = encode_png(pixels, {"seed": "4", "class": "三"})
        assert np.array_equal(decode_png(data), pixels)
        assert Image.open(io.BytesIO(data)).text == {"seed": "4", "class": "三"}
    with pytest.raises(ValueError, match="uint8"):
        encode_png(np.zeros((4, 4), np.uint8))


def test_the_pyfunc_model_gives_the_bundles_images_also_from_another_thread(small):
    model = _load_pyfunc(str(small))
    frame = pd.DataFrame({"class_label": [0, 2], "seed": [5, 6]}, index=[10, 20])
    found = []
    thread = threading.Thread(target=lambda: found.append(model.predict(frame)))
    thread.start()
    thread.join()
    (result,) = found
    assert list(result.columns) == ["png"] and list(result.index) == [10, 20]
    pixels = np.stack([decode_png(data) for data in result["png"]])
    assert np.array_equal(pixels, draw(read_bundle(small), [0, 2], [5, 6]))
    assert Image.open(io.BytesIO(result["png"][20])).text == {"seed": "6", "class": "two"}


# ---- lineage


def test_lineage_names_commit_edits_data_and_dvc_hashes(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert lineage.code(tmp_path) == {"commit": None, "dirty": None}
    git("init", "-q")
    for name in ("code.py", "params.yaml"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "x")
    head = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert lineage.code(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "params.yaml").write_text("2")  # the run's own change
    assert lineage.code(tmp_path)["dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert lineage.code(tmp_path)["dirty"] is True
    assert lineage.dvc_hashes(tmp_path) == {}
    lock = {
        "schema": "2.0",
        "stages": {
            "train": {"cmd": "x", "outs": [{"path": "work/teacher", "hash": "md5", "md5": "ab.dir", "size": 7}]}
        },
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert lineage.dvc_hashes(tmp_path) == {"work/teacher": {"stage": "train", "hash": "md5:ab.dir", "size": 7}}


# ---- the stage without a server


@pytest.fixture(scope="module")
def registered_locally(tmp_path_factory):
    root = make_workspace(tmp_path_factory.mktemp("local"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLX_TASKS_RUN_ID", "manual-7")
        run_register(root, config())
    return root


def test_without_a_server_everything_but_the_registration_is_there(registered_locally):
    verdict = read_verdict(registered_locally)
    assert verdict["passed"] and verdict["registered"] is None and not verdict["promoted"]
    assert verdict["note"].startswith("not registered: no tracking server")
    figures = json.loads((registered_locally / "work" / "metrics" / "register.json").read_text())
    assert figures == {"passed": True, "promoted": False}


def test_the_bundle_samples_with_the_grid_that_won(registered_locally):
    bundle = read_bundle(registered_locally / "work" / "registered" / "bundle")
    assert (bundle.sampler.solver, list(bundle.sampler.timesteps), bundle.sampler.nfe) == ("dpmpp_2m", TIMESTEPS, 3)
    source = read_bundle(registered_locally / "work" / "students" / "steps_2")
    for name in ("conv_in", "conv_out"):
        assert np.array_equal(
            np.array(getattr(bundle.model, name).weight), np.array(getattr(source.model, name).weight)
        )
    scheduler = json.loads((registered_locally / "work/registered/bundle/scheduler/scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["solver_order"]) == ("DPMSolverMultistepScheduler", 2)


def test_the_lineage_in_the_bundle_brings_it_back(registered_locally):
    told = read_bundle(registered_locally / "work" / "registered" / "bundle").lineage
    assert told["run"] == "manual-7" and told["dataset"]["fingerprint"] == "f1d0"
    assert told["params"] == config().dump() and told["params_digest"] == config().digest
    assert told["winner"]["candidate"] == "student-steps2" and told["winner"]["timesteps"] == TIMESTEPS
    assert {"python", "mlx", "numpy"} <= told["versions"].keys()
    assert told["device"]["kind"] in ("cpu", "metal", "cuda")


@pytest.mark.parametrize("path", ["/home/somebody/private/cats", "~/private/cats", "photos/cats"])
def test_a_bundle_names_no_folder_and_no_neighbour_of_the_machine_it_was_made_on(path, tmp_path):
    tree = config().dump()
    tree["data"]["path"], tree["train"]["hosts"] = path, ["somebody@mac1.lan", "mac2.lan"]
    told = lineage.collect(tmp_path, Config.model_validate(tree), detect(), {})
    assert told["params"]["data"]["path"] == ("photos/cats" if path[0] == "p" else "cats")
    assert told["params"]["train"]["hosts"] == ["machine 1", "machine 2"]


def test_the_reference_holds_features_of_the_bundles_own_images(registered_locally):
    folder = registered_locally / "work" / "registered" / "bundle"
    reference = read_reference(folder)
    assert reference.generated.shape == (40, 64) and reference.held_out.shape == (48, 64)
    assert reference.labels.tolist() == [i % 3 for i in range(40)]
    assert reference.captions.captions == ("zero", "one", "two")
    pixels = draw(read_bundle(folder), [1], [1_000_004]).astype(np.float32) / 127.5 - 1
    trained = load_image_text(registered_locally / "work" / "image_text")
    expected = image_text_scores(trained, pixels, ["one"])[0]
    assert reference.scalars["image_text_score"][1] == pytest.approx(expected, rel=1e-4)
    real = load_split(registered_locally / "work" / "dataset", SIDE, "test").images
    assert np.allclose(reference.held_out, RandomConvFeatures(1)(np.array(real)), atol=1e-4)
    assert np.allclose(
        reference.features(draw(read_bundle(folder), [1], [1_000_004])), reference.generated[1], atol=1e-3
    )


def test_the_card_is_markdown_with_front_matter_and_the_scores(registered_locally):
    text = (registered_locally / "work" / "registered" / "model_card.md").read_text()
    assert text == (registered_locally / "work" / "registered" / "bundle" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "diffusers" and told["license"] == "other"
    metrics = {m["type"]: m["value"] for m in told["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"frechet_distance": 0.05, "recall": 0.6, "latency_ms": 3.0}
    assert "| frechet_distance | 0.05 (0.045 to 0.055) | 0.017 |" in body
    assert "one of 3 classes (zero, one, two)" in body and "3 network evaluations" in body
    assert config().digest in body and "Passed." in body and "8 x 8 grey" in body


def test_the_datasets_licence_is_the_cards(tmp_path, monkeypatch, repository):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_workspace(tmp_path)
    card = yaml.safe_load((repository / "include" / "datasets" / "digits.yaml").read_text())
    path = root / "work" / "dataset" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"facts": card}))
    run_register(root, config())
    text = (root / "work" / "registered" / "model_card.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "Licence: CC BY 4.0" in text and "Alpaydin" in text
    assert "Images: 12 train, 48 test" in text


def test_a_bundle_that_changed_since_it_was_scored_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_workspace(tmp_path)
    write_small_bundle(root / "work" / "students" / "steps_2", seed=8)
    with pytest.raises(DataError, match="changed since it was scored"):
        run_register(root, config())


def test_a_refusal_writes_its_reasons_and_is_no_error_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_workspace(tmp_path, distance=0.4)
    with pytest.raises(
        GateRefused, match=r"frechet_distance is 0\.4, must be at most 0\.15, .*worse than a per-class Gaussian"
    ):
        run_register(root, config())
    (reason,) = read_verdict(root)["reasons"]
    assert reason.endswith("what the set gaussian scores: worse than a per-class Gaussian")
    assert "Refused:" in (root / "work" / "registered" / "model_card.md").read_text()


def test_class_names_of_the_workspace_are_those_of_the_bundle(registered_locally):
    assert read_bundle(registered_locally / "work" / "registered" / "bundle").sampler.class_names == CLASSES


def test_learned_steps_are_registered_and_the_card_says_what_diffusers_gets(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = make_workspace(tmp_path)
    path = root / "work" / "scores" / "scores.json"
    scores = json.loads(path.read_text())
    learned = LearnedSteps((9.0, 2.0, 0.5, 0.0), (8.0, 2.5, 0.4), ((), (0.1,), (0.2, -0.05)))
    scores["rows"][-1] |= {"solver": "learned", "grid": "least_squares", "learned": learned.to_dict()}
    path.write_text(json.dumps(scores))
    run_register(root, config())
    folder = root / "work" / "registered" / "bundle"
    assert read_bundle(folder).sampler.learned == learned
    assert "diffusers has no such solver" in (folder / "README.md").read_text()
