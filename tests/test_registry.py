"""Facts about registration: what a bundle says of itself, one version a run, aliases only through the gate."""

import io
import json
import os
import signal
import subprocess
import sys
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
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.image_text import image_text_scores, load_image_text
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.registry import lineage
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.registry.names import CHALLENGER, CHAMPION
from mlx_tasks.registry.png import decode_png, encode_png
from mlx_tasks.registry.pyfunc import _load_pyfunc
from mlx_tasks.registry.reference import read_reference
from mlx_tasks.samplers import LearnedSteps, bundle_noise, sample_bundle

pytest_plugins = ["mlflow_server"]


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
    with pytest.raises(GateRefused, match=r"frechet_distance is 0\.4, must be at most 0\.15"):
        run_register(root, config())
    assert read_verdict(root)["reasons"] == ["frechet_distance is 0.4, must be at most 0.15"]
    assert "Refused:" in (root / "work" / "registered" / "model_card.md").read_text()


# ---- a real server


def versions(registry: Registry, name: str) -> list[str]:
    return sorted(version.version for version in registry.versions(name))


@pytest.mark.e2e
def test_a_winner_becomes_a_version_that_loads_without_pickles_and_draws_the_same(tracked, tmp_path, monkeypatch):
    import mlflow.pyfunc

    monkeypatch.setenv("MLX_TASKS_RUN_COMMIT", "c0ffee")
    root = make_workspace(tmp_path / "w")
    verdict = run_register(root, config("first"))
    assert verdict["promoted"] and verdict["registered"]["aliases"] == [CHALLENGER, CHAMPION]
    registry = Registry(tracked.uri)
    champion = registry.by_alias("first", CHAMPION)
    assert champion.version == "1" == registry.by_alias("first", CHALLENGER).version
    assert champion.run_id == verdict["registered"]["run_id"]
    tags = champion.tags
    assert (tags["mlx_tasks.commit"], tags["mlx_tasks.dataset"]) == ("c0ffee", "f1d0")
    assert (tags["mlx_tasks.params_digest"], tags["mlx_tasks.gate"]) == (config("first").digest, "passed")
    assert json.loads(tags["mlx_tasks.scores"])["recall"]["value"] == 0.6

    model = mlflow.pyfunc.load_model("models:/first@champion")
    frame = pd.DataFrame({"class_label": [1, 0], "seed": [3, 4]})
    pixels = np.stack([decode_png(data) for data in model.predict(frame)["png"]])
    bundle = read_bundle(root / "work" / "registered" / "bundle")
    assert np.array_equal(pixels, draw(bundle, [1, 0], [3, 4]))
    assert [column.name for column in model.metadata.signature.inputs] == ["class_label", "seed"]
    assert model.metadata.get_input_schema() is not None and model.input_example is not None

    local = registry.download(champion, tmp_path / "downloaded")
    assert read_bundle(local).digest == bundle.digest
    kept = [path for path in (tmp_path / "downloaded").rglob("*") if path.is_file()]
    assert not [
        path for path in kept if path.suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth", ".cloudpickle", ".pyc")
    ]
    described = next(path for path in kept if path.name == "MLmodel")
    loader = yaml.safe_load(described.read_text())["flavors"]["python_function"]["loader_module"]
    assert loader == "mlx_tasks.registry.pyfunc"
    # it carries the code it needs: it loads where this package cannot be imported
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)];"
        "sys.path[:] = [p for p in sys.path if 'ditable' not in p];"
        "import importlib.util; assert importlib.util.find_spec('mlx_tasks') is None;"
        "import mlflow.pyfunc, pandas as pd;"
        f"m = mlflow.pyfunc.load_model({str(described.parent)!r});"
        "png = m.predict(pd.DataFrame({'class_label': [1], 'seed': [3]}))['png'][0];"
        "import mlx_tasks; print(mlx_tasks.__file__); print(png.hex())"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    *_, origin, png = out.split()
    assert origin.startswith(str(tmp_path))
    assert np.array_equal(decode_png(bytes.fromhex(png)), draw(bundle, [1], [3])[0])


@pytest.mark.e2e
def test_mlflows_own_server_draws_the_same(tracked, tmp_path):
    """`mlflow models serve`, as MLflow's users start it."""
    import base64
    import socket
    import time

    import httpx

    run_register(root := make_workspace(tmp_path / "w"), config("scored"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/scored@champion", "-h", "127.0.0.1"]
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", str(port), "--env-manager", "local"],
            stdout=log, stderr=log, env=environment, start_new_session=True, cwd=tmp_path,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ping", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        body = {"dataframe_split": {"columns": ["class_label", "seed"], "data": [[1, 3]]}}
        told = httpx.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60, trust_env=False).json()
        bundle = read_bundle(root / "work" / "registered" / "bundle")
        png = base64.b64decode(told["predictions"][0]["png"])
        assert np.array_equal(decode_png(png), draw(bundle, [1], [3])[0])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.e2e
@pytest.mark.parametrize("crash", ["set_alias", "_create_version"])
def test_a_retry_after_a_crash_makes_no_second_version(tracked, tmp_path, monkeypatch, crash):
    name = f"retried-{crash.strip('_')}"
    root = make_workspace(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, crash, lambda *_, **__: (_ for _ in ()).throw(RuntimeError("the machine went down")))
        with pytest.raises(RuntimeError, match="went down"):
            run_register(root, config(name))
    verdict = run_register(root, config(name))
    registry = Registry(tracked.uri)
    assert verdict["registered"]["version"] == "1" and versions(registry, name) == ["1"]
    assert registry.by_alias(name, CHAMPION).version == "1"
    assert len(registry.logged_models(verdict["registered"]["run_id"])) == 1


@pytest.mark.e2e
def test_the_title_changes_hands_only_through_the_gate(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "a")
    registry = Registry(tracked.uri)
    run_register(make_workspace(tmp_path / "a", 0.05), config("title"))

    # worse beyond the champion's interval (up to 0.055): challenger only, and the stage ends green (GateRefused)
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "b")
    worse = make_workspace(tmp_path / "b", 0.06, weights=4)
    with pytest.raises(GateRefused, match=r"0\.06 is worse than champion version 1's 0\.05"):
        run_register(worse, config("title"))
    verdict = read_verdict(worse)
    assert verdict["champion"][0]["how"] == "stored" and verdict["note"] == "not promoted: the gate refused"
    assert (registry.by_alias("title", CHALLENGER).version, registry.by_alias("title", CHAMPION).version) == ("2", "1")

    # the same scores with the comparison switched off
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "c")
    verdict = run_register(
        make_workspace(tmp_path / "c", 0.06, weights=4), config("title", not_worse=[], promote=False)
    )
    assert verdict["passed"] and verdict["note"] == "not promoted: gate.promote is off"
    assert registry.by_alias("title", CHAMPION).version == "1"

    # within the champion's interval
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "d")
    verdict = run_register(make_workspace(tmp_path / "d", 0.054, weights=5), config("title"))
    assert verdict["promoted"] and registry.by_alias("title", CHAMPION).version == "4"

    # run again with nothing changed: the same version, which is not measured against itself
    verdict = run_register(tmp_path / "d", config("title"))
    assert verdict["registered"]["version"] == "4" and verdict["champion"] == []


@pytest.mark.e2e
def test_a_champion_scored_under_other_conditions_is_scored_again(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "a")
    run_register(make_workspace(tmp_path / "a", 1e-6), config("again"))
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "b")
    root = make_workspace(tmp_path / "b", 0.05, weights=4)
    path = root / "work" / "scores" / "scores.json"
    scores = json.loads(path.read_text())
    scores["setup"] |= {"noise_seed": 5, "samples": 48}
    path.write_text(json.dumps(scores))
    verdict = run_register(root, config("again"))  # fresh weights are far from the data, so 0.05 is no worse

    bundle = read_bundle(tmp_path / "a" / "work" / "registered" / "bundle")
    test = load_split(root / "work" / "dataset", SIDE, "test")
    drawn = sample_bundle(bundle, bundle_noise(bundle, 5, 48), test.labels).images
    space = RandomConvFeatures(1)
    expected = frechet_distance(space(to_uint8(np.array(drawn))), space(np.array(test.images)))
    assert verdict["champion"][0]["how"] == "scored again"
    assert verdict["champion"][0]["value"] == pytest.approx(expected, rel=1e-3) and expected > 0.05

    # a champion of other classes cannot be scored on these images
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "c")
    with pytest.raises(GateRefused, match=r"cannot be compared with champion version 2.*classes of other names"):
        run_register(make_workspace(tmp_path / "c", 0.001, weights=5, classes=("a", "b", "c")), config("again"))


@pytest.mark.e2e
def test_a_champion_made_meanwhile_is_looked_at_before_the_title_is_given(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "a")
    run_register(make_workspace(tmp_path / "a", 0.01, weights=6), config("race", promote=False))
    registry = Registry(tracked.uri)
    monkeypatch.setenv("MLX_TASKS_RUN_ID", "b")
    register = Registry.register

    def other_run_first(self, *arguments):
        found = register(self, *arguments)
        self.set_alias("race", CHAMPION, "1")
        return found

    monkeypatch.setattr(Registry, "register", other_run_first)
    with pytest.raises(GateRefused, match="worse than champion version 1"):
        run_register(make_workspace(tmp_path / "b", 0.05), config("race"))
    assert registry.by_alias("race", CHAMPION).version == "1"


@pytest.mark.e2e
def test_names_that_lead_nowhere_are_told(tracked):
    registry = Registry(tracked.uri)
    assert registry.by_alias("nobody", CHAMPION) is None
    for reference in ("nobody@champion", "nobody/3", "nobody"):
        with pytest.raises(DataError, match="nobody"):
            registry.resolve(reference)


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
