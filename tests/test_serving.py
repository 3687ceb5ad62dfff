"""Facts about serving: real HTTP to a real server process, deployments that can be taken back, DAGs that stay thin."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image
from registry_workspace import CLASSES, SIDE, make_workspace, run_register, write_small_bundle

from mlx_tasks.config import Config
from mlx_tasks.errors import BusyError, DataError, UnavailableError
from mlx_tasks.files import write_json
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.monitoring.window import read_window
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.mlflow_registry import SERVING, Registry
from mlx_tasks.registry.png import decode_png
from mlx_tasks.registry.reference import make_reference, write_reference
from mlx_tasks.serving import deploy
from mlx_tasks.serving.pointer import Pointer, read_pointer, read_previous
from mlx_tasks.serving.process import CommandFailed, run_command
from mlx_tasks.serving.prompts import ANY_CLASS, class_of
from mlx_tasks.serving.worker import Worker

pytest_plugins = ["mlflow_server"]


def bundle_with_reference(folder, seed=3):
    write_small_bundle(folder, seed)
    bundle = read_bundle(folder)
    real = draw(bundle, [i % 3 for i in range(80)], list(range(90_000, 90_080)))
    noisy = np.clip(real + np.random.default_rng(0).normal(0, 12, real.shape), 0, 255).astype(np.uint8)
    write_reference(folder, make_reference(bundle, noisy, 120))
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("first") / "digits")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("second") / "digits", seed=8)


# ---- prompts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("one", 1),
        ("  ONE\n", 1),
        ("a handwritten one, in ink", 1),
        ("stones are no number but zero is", 0),
        ("a sea lion on a rock", 3),
        ("a lion on a rock", 4),
        ("écrit à la main: VINGT-DEUX", 5),
        ("vingt-deux", 5),
        ("手書きの三です", 6),
        ("ｚｅｒｏ", 0),
        ("one and ONE", 1),
    ],
)
def test_a_prompt_names_one_class(prompt, expected):
    names = ("zero", "one", "two", "sea lion", "lion", "vingt-deux", "三")
    assert class_of(prompt, names) == expected


@pytest.mark.parametrize(
    ("prompt", "message"), [("one or two", "'one' and 'two'"), ("stone", "zero, one, two"), ("", "got ''")]
)
def test_a_prompt_that_names_none_or_two_is_told(prompt, message):
    with pytest.raises(DataError, match=message):
        class_of(prompt, ("zero", "one", "two"))


def test_any_prompt_will_do_for_a_bundle_without_classes():
    assert class_of("whatever", ()) == ANY_CLASS


# ---- the server


class Server:
    """`mlx-tasks serve` as a process of its own."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlx_tasks", "serve", "--port", str(port), *arguments]
        self.process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def wait(self, path="/readyz", status=200, patience_s=60):
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                answer = self.http.get(path)
                if answer.status_code == status:
                    return answer
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.05)
        raise AssertionError(f"{path} never answered {status}")

    def draw(self, **body):
        return self.http.post("/v1/images/generations", json=body)

    def stop(self):
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process.stderr.close()


@pytest.fixture(scope="module")
def server(first, tmp_path_factory):
    window = tmp_path_factory.mktemp("window")
    running = Server("--bundle", str(first), "--keep", str(window), "--kept", "40")
    running.window = window
    running.wait()
    yield running
    running.stop()


def pngs(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]


def test_an_image_is_the_bundles_own_and_names_what_brings_it_back(server, first):
    (data,) = pngs(server.draw(prompt="a handwritten two", seed=11))
    bundle = read_bundle(first)
    assert np.array_equal(decode_png(data), draw(bundle, [2], [11])[0])
    text = Image.open(io.BytesIO(data)).text
    assert (text["seed"], text["class"], text["model"]) == ("11", "two", "digits")
    assert text["bundle_digest"] == bundle.digest and text["model_version"] == bundle.digest[:12]


def test_the_same_seed_gives_the_same_bytes_alone_in_a_row_and_from_many_callers(server):
    row = pngs(server.draw(prompt="one", n=4, seed=2**32 - 2))
    assert len(set(row)) == 4
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda seed: pngs(server.draw(prompt="one", seed=seed))[0], seeds * 3))
    assert alone == row * 3


def test_without_a_seed_images_differ_and_the_answer_tells_the_seed(server):
    answers = [server.draw(prompt="zero") for _ in range(2)]
    (one,), (other,) = map(pngs, answers)
    assert one != other
    assert pngs(server.draw(prompt="zero", seed=answers[0].json()["data"][0]["seed"])) == [one]


def test_the_model_route_tells_what_serves(server, first):
    (model,) = server.http.get("/v1/models").json()["data"]
    assert model["id"] == "digits" and model["digest"] == read_bundle(first).digest
    assert (model["classes"], model["size"], model["nfe"]) == (list(CLASSES), f"{SIDE}x{SIDE}", 2)
    assert server.http.get("/livez").json() == {"status": "alive"}
    assert server.http.get("/readyz").json()["status"] == "ready"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 1001}, "prompt"),
        ({"prompt": "nine"}, "zero, one, two"),
        ({"prompt": "one two"}, "'one' and 'two'"),
        ({"prompt": "one", "n": 0}, "n: "),
        ({"prompt": "one", "n": 17}, "n: "),
        ({"prompt": "one", "n": "2"}, "n: "),
        ({"prompt": "one", "seed": -1}, "seed: "),
        ({"prompt": "one", "seed": 2**32}, "seed: "),
        ({"prompt": "one", "seed": 1.5}, "seed: "),
        ({"prompt": "one", "response_format": "url"}, "response_format: "),
        ({"prompt": "one", "size": "512x512"}, "draws 8x8"),
        ({"prompt": "one", "size": "big"}, "size: "),
        ({"prompt": "one", "model": "dall-e-3"}, "has digits"),
        ({"prompt": "one", "steps": 5}, "steps: "),
        ([], "body"),
    ],
)
def test_bad_input_is_a_400_that_says_what_is_wrong(server, body, message):
    answer = server.http.post("/v1/images/generations", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and message in error["message"]


def test_bodies_that_are_no_json_or_too_long_are_refused(server):
    assert server.http.post("/v1/images/generations", content=b"{").status_code == 400
    assert server.http.post("/v1/images/generations", content=b"x" * 70_000).status_code == 413
    assert server.http.post("/v1/images/generations", content=iter([b"{}"])).status_code == 413  # no length told


def test_the_window_keeps_the_newest_images_for_the_monitor(server):
    for seed in range(3):
        pngs(server.draw(prompt="two", n=16, seed=100 * seed))
    window = read_window(server.window, SIDE, 1)
    assert len(window.images) == 40 and set(window.classes) == {"two"} and not window.unreadable


def test_a_server_without_a_bundle_is_alive_and_not_ready(tmp_path):
    running = Server("--bundle", str(tmp_path / "nothing"))
    try:
        answer = running.wait("/readyz", 503)
        while answer.json()["problem"] == "the model is being loaded":
            answer = running.http.get("/readyz")
        assert "is no bundle" in answer.json()["problem"]
        assert running.http.get("/livez").status_code == 200
        refused = running.draw(prompt="one")
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        assert running.http.get("/v1/models").json()["data"] == []
    finally:
        running.stop()


# ---- the worker


def started(source, **options):
    worker = Worker(source, **options)
    worker.start()
    deadline = time.monotonic() + 30
    while not worker.ready and time.monotonic() < deadline:
        time.sleep(0.01)
    return worker


def test_a_full_queue_refuses_and_a_stop_answers_those_who_wait(first, monkeypatch):
    import mlx_tasks.registry.draw as module

    worker = started(Pointer("digits", "", str(first)), queue_size=2)
    going, release = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        going.set()
        release.wait(20)
        return draw(*arguments, **options)

    monkeypatch.setattr(module, "draw", slow)
    drawing = worker.submit("one", [1])
    assert going.wait(10)
    waiting = [worker.submit("one", [2]), worker.submit("one", [3])]
    with pytest.raises(BusyError, match="2 requests wait"):
        worker.submit("one", [4])
    worker.stop()
    release.set()
    assert drawing.result(20).images.shape == (1, SIDE, SIDE, 1)
    for future in waiting:
        with pytest.raises(UnavailableError, match="stopping"):
            future.result(20)
    with pytest.raises(UnavailableError):
        worker.submit("one", [5])


def test_a_pointer_that_changes_is_followed_and_a_broken_bundle_is_not(first, second, tmp_path):
    path = tmp_path / "serving.json"
    write_json(path, {"now": {"name": "digits", "version": "1", "bundle": str(first)}, "before": None})
    worker = started(path, poll_s=0.05)
    try:
        old = worker.submit("one", [1]).result(20)
        write_json(path, {"now": {"name": "digits", "version": "9", "bundle": str(tmp_path)}, "before": None})
        while not worker.problem:
            time.sleep(0.01)
        assert "is no bundle" in worker.problem and worker.ready
        kept = worker.submit("one", [1]).result(20)
        assert kept.model.version == "1" and np.array_equal(kept.images, old.images)
        write_json(path, {"now": {"name": "digits", "version": "2", "bundle": str(second)}, "before": None})
        while worker.model.version != "2":
            time.sleep(0.01)
        new = worker.submit("one", [1]).result(20)
        assert new.model.digest == read_bundle(second).digest and not np.array_equal(new.images, old.images)
        assert worker.problem == ""
    finally:
        worker.stop()


# ---- deployments


def test_a_canary_passes_what_was_registered_and_refuses_what_draws_otherwise(first, second, tmp_path):
    import shutil

    found = deploy.canary(first, images=60)
    assert found.passed and found.measured["p_value"] > 0.001, found
    shutil.copytree(first, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "reference")
    shutil.copytree(second / "reference", tmp_path / "mixed" / "reference")
    refused = deploy.canary(tmp_path / "mixed", images=60)
    assert not refused.passed and "drift" in refused.reasons[0]


def test_a_canary_refuses_a_bundle_that_gives_no_images(first, tmp_path, monkeypatch):
    import mlx_tasks.samplers.bundle_sampler as module

    def broken(bundle, noise, *arguments, **options):
        return SimpleNamespace(images=noise * float("nan"))

    monkeypatch.setattr(module, "sample_bundle", broken)
    refused = deploy.canary(first, images=4)
    assert not refused.passed and "not finite" in refused.reasons[0]


def test_swap_verify_and_roll_back_leave_what_served_before(first, second, tmp_path):
    path = deploy.pointer_path(tmp_path)
    one = deploy.swap(tmp_path, first, "digits", "1", "run-1")
    assert read_pointer(path) == one and read_previous(path) is None
    two = deploy.swap(tmp_path, second, "digits", "2", "run-2")
    assert deploy.swap(tmp_path, second, "digits", "2", "run-2") == two  # a retry keeps the way back
    assert read_previous(path) == one
    assert deploy.verify(tmp_path)["version"] == "2"
    assert deploy.roll_back(tmp_path, "run-1") == two  # another run's swap is left alone
    assert deploy.roll_back(tmp_path, "run-2") == one == read_pointer(path)
    assert deploy.verify(tmp_path)["digest"] == read_bundle(first).digest
    assert deploy.swap(tmp_path, first, "digits", "1", "run-3") == one  # it serves already: nothing to undo later
    assert deploy.roll_back(tmp_path, "run-3") == one
    assert deploy.roll_back(tmp_path) is None
    with pytest.raises(DataError, match="nothing is deployed"):
        deploy.verify(tmp_path)


def test_a_deployed_bundle_that_was_changed_does_not_verify(first, tmp_path):
    now = deploy.swap(tmp_path, first, "digits", "1", "run-1")
    weights = next((tmp_path / "bundles").rglob("*.safetensors"))
    assert str(weights).startswith(now.bundle)
    for path in (tmp_path / "bundles").rglob("sampler.json"):
        path.write_text(path.read_text().replace("999", "998"))
    with pytest.raises(DataError, match="differ"):
        deploy.verify(tmp_path)


# ---- through the registry, as the DAG does it


def test_a_failed_command_tells_its_code_and_last_words(tmp_path):
    with pytest.raises(CommandFailed, match=r"exit code 10: .*digests\.json") as caught:
        run_command("deploy", "swap", "--bundle", str(tmp_path), "--state", str(tmp_path))
    assert caught.value.code == 10


@pytest.mark.e2e
def test_the_dags_steps_put_a_champion_into_service_and_take_it_back(tracked, tmp_path, monkeypatch, repository):
    state = tmp_path / "state"
    monkeypatch.setenv("ADO_STATE", str(state))
    config = Config(gate={"limits": []}, register={"model_name": "served"})
    for run, weights in (("a", 3), ("b", 6)):
        monkeypatch.setenv("MLX_TASKS_RUN_ID", run)
        run_register(make_workspace(tmp_path / run, 0.05, weights=weights), config)
    registry = Registry(tracked.uri)
    dag = load_dag(repository, "deploy_champion")
    calls = {name: dag.get_task(name).python_callable for name in ("canary", "swap", "verify", "roll_back")}
    form = {"model": "served@champion", "url": ""}

    event = SimpleNamespace(extra={"model": "served", "version": "1"})
    found = calls["canary"](params=form, triggering_asset_events={"champion_model": [event]})
    assert found["model"] == "served/1"
    calls["swap"](found, run_id="run-1")
    assert registry.by_alias("served", SERVING).version == "1"

    running = Server("--pointer", str(state / "serving" / "serving.json"))
    try:
        running.wait()
        found = calls["canary"](params=form)
        assert found["model"] == "served/2"
        calls["swap"](found, run_id="run-2")
        told = calls["verify"](params=form | {"url": running.url})
        assert told["version"] == "2" and registry.by_alias("served", SERVING).version == "2"
        assert running.http.get("/v1/models").json()["data"][0]["version"] == "2"
        from airflow.sdk.exceptions import AirflowFailException

        with pytest.raises(AirflowFailException, match="serving now: served 1"):
            calls["roll_back"](run_id="run-2")
        assert registry.by_alias("served", SERVING).version == "1"
        while running.http.get("/v1/models").json()["data"][0]["version"] != "1":
            time.sleep(0.05)
    finally:
        running.stop()


# ---- the DAG files


def load_dag(repository, name):
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"dag_{name}", repository / "dags" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


@pytest.mark.parametrize("name", ["deploy_champion", "monitor_quality"])
def test_a_dag_file_is_light_tagged_and_documented(repository, name):
    code = (
        "import sys, time, json, airflow.sdk; from airflow.sdk import DAG; started = time.perf_counter();"
        f"import runpy; found = runpy.run_path('dags/{name}.py')['{name}'];"
        "seconds = time.perf_counter() - started; dag = found();"
        "heavy = sorted({'mlx', 'torch', 'mlflow', 'optuna'} & set(sys.modules));"
        "print(json.dumps({'seconds': seconds, 'heavy': heavy,"
        "'tags': sorted(dag.tags), 'doc': bool(dag.doc_md), 'paused': dag.is_paused_upon_creation,"
        "'retries': [t.retries for t in dag.tasks]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["heavy"] == [] and told["doc"] and told["paused"] and "diffusion" in told["tags"]
    assert told["seconds"] < 1.0 + 2.0  # a second of its own, and this machine's noise
    assert max(told["retries"]) == 1


def test_deploy_runs_its_steps_in_order_and_rolls_back_only_on_failure(repository):
    dag = load_dag(repository, "deploy_champion")
    order = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
    assert order == {"canary": ["swap"], "swap": ["verify"], "verify": ["roll_back"], "roll_back": []}
    assert dag.get_task("roll_back").trigger_rule == "one_failed"


def test_the_monitor_dag_alerts_with_the_monitors_own_words(repository, tmp_path, second, first, monkeypatch):
    from airflow.sdk import Asset
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

    from mlx_tasks.serving import process

    bundle = read_bundle(second)
    images = draw(bundle, [i % 3 for i in range(40)], list(range(40)))
    from mlx_tasks.registry.png import encode_png

    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(encode_png(image, {"class": CLASSES[i % 3]}))
    dag = load_dag(repository, "monitor_quality")
    look, alert = (dag.get_task(name).python_callable for name in ("look", "alert"))
    form = {"window": str(tmp_path), "model": "digits/1", "level": 0.01, "max_quality_loss": 0.5}

    def with_a_folder(*arguments):  # the registry's part is shown above; here a folder stands for it
        words = list(arguments)
        words[words.index("--model") : words.index("--model") + 2] = ["--bundle", str(folder)]
        return run_command(*words)

    monkeypatch.setattr(process, "run_command", with_a_folder)
    folder = second
    with pytest.raises(AirflowSkipException, match="nothing to alert"):
        alert(look(params=form), outlet_events={})
    folder = first
    events = {Asset("quality_alert"): SimpleNamespace(extra=None)}
    said = alert(look(params=form), outlet_events=events)
    assert said[0].startswith("critical drift: ")
    assert events[Asset("quality_alert")].extra["alerts"][0]["name"] == "drift"
    with pytest.raises(AirflowFailException, match="no window"):
        look(params=form | {"window": ""})
