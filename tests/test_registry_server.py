"""Registration with a real MLflow server: one version a run, the title only through the gate, retries."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from ports import free_port
from registry_workspace import SIDE, make_workspace, read_verdict, run_register

from mlx_tasks.config import Config, Gate
from mlx_tasks.data.loader import load_split, to_uint8
from mlx_tasks.errors import DataError, GateRefused
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.mlflow_registry import Registry
from mlx_tasks.registry.names import CHALLENGER, CHAMPION
from mlx_tasks.registry.png import decode_png
from mlx_tasks.samplers import bundle_noise, sample_bundle

pytest_plugins = ["mlflow_server"]


def config(name: str = "digits-sampler", **gate) -> Config:
    return Config(gate=Gate(**gate), register={"model_name": name})


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
    import time

    import httpx

    run_register(root := make_workspace(tmp_path / "w"), config("scored"))
    port = free_port()
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
