"""Facts about the server, over real HTTP to a real process."""

import base64
import contextlib
import inspect
import io
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from registry_workspace import CLASSES, SIDE, write_small_bundle
from serving_world import Server, bundle_with_reference, pngs

from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.monitoring.window import read_window
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.png import decode_png

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("first") / "digits")


@pytest.fixture(scope="module")
def server(first, tmp_path_factory):
    window = tmp_path_factory.mktemp("window")
    running = Server("--bundle", str(first), "--window", str(window))
    running.window = window
    running.wait()
    yield running
    running.stop()


def test_an_image_is_the_bundles_own_and_names_what_brings_it_back(server, first):
    answer = server.draw(prompt="a handwritten two", seed=11)
    (data,) = pngs(answer)
    bundle = read_bundle(first)
    assert np.array_equal(decode_png(data), draw(bundle, [2], [11])[0])
    text = Image.open(io.BytesIO(data)).text
    assert (text["seed"], text["class"], text["model"], text["nfe"]) == ("11", "two", "digits", "2")
    assert text["bundle_digest"] == bundle.digest and text["model_version"] == bundle.digest[:12]
    told = answer.json()
    assert told["model"] == f"digits/{bundle.digest[:12]}" and told["nfe"] == 2 and told["timing"]["drawn_ms"] > 0


def test_the_same_seed_gives_the_same_bytes_alone_in_a_row_and_from_many_callers(server):
    row = pngs(server.draw(prompt="one", n=4, seed=2**32 - 2))
    assert len(set(row)) == 4
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    others = [{"class": "zero", "steps": k, "guidance": 2.0} for k in (3, 9)]
    with ThreadPoolExecutor(8) as pool:
        noise = [pool.submit(lambda body=body: server.draw(**body)) for body in others * 3]
        alone = list(pool.map(lambda seed: pngs(server.draw(prompt="one", seed=seed))[0], seeds * 3))
    assert alone == row * 3 and all(one.result().status_code == 200 for one in noise)


def test_requests_that_wait_together_share_their_network_calls(server):
    def figures():
        lines = server.http.get("/metrics").text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}

    before = figures()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: server.draw(prompt="one", seed=seed, steps=40), range(12)))
    after = figures()
    assert all(answer.json()["nfe"] == 40 for answer in answers)
    calls = after["diffusion_batch_rows_count"] - before["diffusion_batch_rows_count"]
    rows = after["diffusion_batch_rows_sum"] - before["diffusion_batch_rows_sum"]
    assert rows == 12 * 40 and calls < rows / 2
    assert (
        after['diffusion_requests_total{status="200"}'] - before.get('diffusion_requests_total{status="200"}', 0) == 12
    )


def test_without_a_seed_images_differ_and_the_answer_tells_the_seed(server):
    answers = [server.draw(prompt="zero") for _ in range(2)]
    (one,), (other,) = map(pngs, answers)
    assert one != other
    assert pngs(server.draw(prompt="zero", seed=answers[0].json()["data"][0]["seed"])) == [one]


def test_a_strip_ends_near_the_image(server):
    picture = server.draw(prompt="two", seed=5, steps=10, strip=4).json()["data"][0]
    levels = [one["sigma"] for one in picture["strip"]]
    assert len(levels) == 4 and levels == sorted(levels, reverse=True)


def test_openais_stock_client_is_served(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    drawn = client.images.generate(
        model="digits", prompt="one", n=2, size=f"{SIDE}x{SIDE}", response_format="b64_json", extra_body={"seed": 3}
    )
    assert [one.b64_json for one in drawn.data] == [
        one["b64_json"] for one in server.draw(prompt="one", n=2, seed=3).json()["data"]
    ]
    assert client.images.generate(prompt="one", quality="high", n=None, size=None).data[0].b64_json
    assert [model.id for model in client.models.list()] == [server.serving()["id"]]
    with pytest.raises(openai.BadRequestError, match="zero, one, two"):
        client.images.generate(prompt="nine")


def test_a_class_counts_in_any_spelling(tmp_path_factory):
    names = ("golden_retriever", "GermanShepherd", "7")
    folder = tmp_path_factory.mktemp("spelt") / "dogs"
    write_small_bundle(folder, classes=names)
    running = Server("--bundle", str(folder))
    try:
        running.wait()
        for name, others in zip(
            names, (("a photo of a Golden-Retriever", "golden retriever"), ("german shepherd",), ("a 7",)), strict=True
        ):
            expected = pngs(running.draw(**{"class": name, "seed": 4}))
            for prompt in others:
                assert pngs(running.draw(prompt=prompt, seed=4)) == expected
            assert Image.open(io.BytesIO(expected[0])).text["class"] == name
        assert running.draw(prompt="a golden retriever and a german shepherd").status_code == 400
    finally:
        running.stop()


def test_the_model_route_tells_what_serves(server, first):
    model = server.serving()
    digest = read_bundle(first).digest
    assert model["id"] == f"digits/{digest[:12]}" and model["digest"] == digest and model["same_bits_in_any_batch"]
    assert (model["classes"], model["size"], model["nfe"]) == (list(CLASSES), f"{SIDE}x{SIDE}", 2)
    assert server.http.get("/livez").json() == {"status": "alive"}
    assert server.http.get("/readyz").json()["status"] == "ready"
    assert server.http.get("/v1/versions").json()["data"] == []


def test_openapi_shows_the_routes_with_examples_that_work(server):
    told = server.http.get("/openapi.json").json()
    assert {"/v1/images/generations", "/v1/models", "/readyz", "/metrics"} <= set(told["paths"])
    examples = told["components"]["schemas"]["ImageRequest"]["examples"]
    for example in examples:
        named = json.loads(json.dumps(example).replace("three", "one"))
        assert server.draw(**named).status_code == 200
    assert set(told["paths"]["/v1/images/generations"]["post"]["responses"]) >= {"200", "400", "429", "503", "504"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 1001}, "prompt"),
        ({"prompt": "nine"}, "zero, one, two"),
        ({"prompt": "one two"}, "'one' and 'two'"),
        ({"prompt": "one", "class": "one"}, "give one of them"),
        ({"class": 1}, "class: "),
        ({"class": "1"}, "class: one of the model's (zero, one, two), got '1'"),
        ({"class": "nine"}, "zero, one, two"),
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
        ({"prompt": "one", "model": "digits@champion"}, "no registry"),
        ({"prompt": "one", "style": "cubist"}, "style: "),
        ({"prompt": "one", "styles": "vivid"}, "styles: there is no such field; there are prompt, class, n, seed"),
        ({"prompt": "one", "styles": None}, "styles: "),
        ({"prompt": "one", "guidance": "3"}, "guidance: "),
        ({"prompt": "one", "guidance": True}, "guidance: "),
        ({"prompt": "one", "image": "aGVsbG8="}, "image: it is not taken (images are drawn from noise here"),
        ({"prompt": "one", "mask": {}}, "mask: it is not taken"),
        ({"prompt": "one", "model": "digits\u0000"}, "model: "),
        ({"prompt": None}, "prompt"),
        ({"prompt": "one", "steps": 0}, "steps: "),
        ({"prompt": "one", "steps": 3, "solver": "magic"}, "solver: one of"),
        ({"prompt": "one", "quality": "superb"}, "quality: one of"),
        ({"prompt": "one", "guidance": -1.0}, "guidance: "),
        ({"prompt": "one", "strip": 13}, "strip: "),
        ([], "body"),
    ],
)
def test_bad_input_is_a_400_that_says_what_is_wrong(server, body, message):
    answer = server.http.post("/v1/images/generations", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and message in error["message"]


NOTHING = {
    "background": (["auto", "opaque"], ["transparent"]),
    "complexity": (["low", "medium", "high"], ["extreme"]),
    "frame_count": ([], [2, 9]),
    "frame_duration_ms": ([], [200]),
    "moderation": (["low", "auto"], ["none"]),
    "n": ([1], [17, 0]),
    "output_compression": ([0, 50, 100], [101, -1]),
    "output_format": (["png"], ["jpeg", "webp", "gif", "svg"]),
    "partial_images": ([0], [1, 3]),
    "quality": (["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"], ["ultra"]),
    "response_format": (["b64_json"], ["url"]),
    "safety_identifier": (["user-1"], [1]),
    "size": (["auto", f"{SIDE}x{SIDE}"], ["1024x1024", "1536x1024"]),
    "stream": ([False], [True]),
    "style": (["vivid", "natural"], ["cubist"]),
    "svg": ([], [{"model": "gpt"}]),
    "user": (["somebody"], [1]),
}
"""Of each parameter of OpenAI's `images.generate`: values that change nothing here, and values that are refused."""


def test_every_parameter_of_openais_client_is_taken_or_refused_by_name(server):
    """A parameter that a new version of the client brings fails here until it is one or the other."""
    known = set(inspect.signature(openai.resources.images.Images.generate).parameters)
    assert known - {"self", "extra_headers", "extra_query", "extra_body", "timeout"} == {*NOTHING, "prompt", "model"}
    expected = pngs(server.draw(prompt="one", seed=3))
    for name, (neutral, refused) in NOTHING.items():
        for value in [None, *neutral]:
            assert pngs(server.draw(prompt="one", seed=3, **{name: value})) == expected, (name, value)
        for value in refused:
            answer = server.draw(prompt="one", seed=3, **{name: value})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, name) and error["message"].startswith(f"{name}: ")
    assert pngs(server.draw(prompt="one", seed=3, model="digits")) == expected
    nulls = {name: None for name in (*NOTHING, "model", "class", "steps", "solver", "grid", "guidance", "strip")}
    assert pngs(server.draw(prompt="one", seed=3, **nulls)) == expected


def test_a_quality_that_the_model_lacks_is_drawn_its_own_way_and_the_answer_says_so(server):
    told = {quality: server.draw(prompt="one", seed=3, quality=quality).json() for quality in (None, "fast", "hd")}
    assert {answer["plan"] for answer in told.values()} == {"own"} and {one["nfe"] for one in told.values()} == {2}
    assert server.draw(prompt="one", steps=3).json()["plan"] == "custom"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[" * 60_000, "nested too deep"),
        ('{"prompt":' * 6_000 + "1", "nested too deep"),
        ('{"prompt": "one", "seed": 1' + "0" * 5_000 + "}", "at most 20 digits, got 10000000000000000000..."),
        ('{"prompt": "one", "seed": 1e400}', "a number is at most 1.8e308"),
        ('{"prompt": "one", "guidance": 1e400}', "a number is at most 1.8e308"),
        ('{"prompt": "one", "guidance": NaN}', "a number is finite, got NaN"),
        ('{"prompt": "one", "guidance": -Infinity}', "a number is finite, got -Infinity"),
        ('{"prompt": "one \\ud800"}', "half of a surrogate pair"),
        ('{"\\udfff": "one"}', "half of a surrogate pair"),
        ('{"prompt": "one", "n": 1, "n": 2}', "'n' is there twice"),
        (b'{"prompt": "\xff"}', "text is UTF-8, byte 12 is not"),
        ('{"prompt": "one"}'.encode("utf-16"), "text is UTF-8"),
        ('{"' + "x" * 50_000 + '": 1}', "there is no such field"),
        ('{"prompt": "one", "solver": "' + "x" * 50_000 + '"}', "solver: "),
        ('{"prompt": "' + "x" * 999 + '"}', "zero, one, two"),
        ('{"prompt": "one", "model": "' + "x" * 200 + '"}', "has digits"),
        ("null", "body"),
        ("1", "body"),
        ("", "body"),
    ],
)
def test_json_of_any_kind_is_answered_in_few_words(server, body, message):
    kind = {"Content-Type": "application/json"}
    answer = server.http.post("/v1/images/generations", content=body, headers=kind)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert len(answer.content) < 1000
    assert server.draw(prompt="one").status_code == 200


@pytest.mark.parametrize("path", ["/" + "x" * 10_000, "/%ff%00", "/v1/%F0%9F%98%80", "/v1/models/../../etc"])
def test_paths_of_any_kind_are_answered_in_few_words(server, path):
    answer = server.http.get(path)
    assert answer.status_code == 404 and len(answer.content) < 500


def test_bodies_that_are_no_json_or_too_long_are_refused(server):
    kind = {"Content-Type": "application/json"}
    broken = server.http.post("/v1/images/generations", content=b"{", headers=kind)
    assert broken.status_code == 400 and "JSON" in broken.json()["error"]["message"]
    assert server.http.post("/v1/images/generations", content=b"{").status_code == 400  # no kind told
    assert server.http.post("/v1/images/generations", content=b"x" * 70_000).status_code == 413
    assert server.http.post("/v1/images/generations", content=iter([b"{}"])).status_code == 413  # no length told
    assert server.http.get("/nothing").json()["error"]["message"].startswith("GET /nothing: Not Found")


def test_a_page_under_another_name_gets_nothing(server):
    """A site whose name was pointed at loopback must not read this server through somebody's browser."""
    answer = server.http.get("/v1/models", headers={"Host": "evil.example"})
    assert answer.status_code == 421 and "not called evil.example" in answer.json()["error"]["message"]
    assert server.http.get("/v1/models", headers={"Host": "localhost:8090"}).status_code == 200
    assert server.http.get("/v1/models", headers={"Host": "[::"}).status_code == 421
    assert server.http.get("/v1/models", headers={"Host": "[::1]:8090"}).status_code == 200


def test_with_a_key_every_route_but_health_asks_for_it(first, tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    running = Server("--bundle", str(first), "--key-file", str(tmp_path / "key"))
    try:
        running.wait()
        for path in ("/", "/page.js", "/v1/models", "/v1/versions", "/metrics", "/openapi.json", "/nothing"):
            answer = running.http.get(path)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key", path
        assert running.draw(prompt="one").status_code == 401
        assert running.http.get("/livez").status_code == 200
        for wrong in ("Bearer nonsense", "Bearer x", "Basic bm9uZQ==", "Basic ???", KEY):
            assert running.http.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
        assert running.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert running.http.get("/", auth=("anyone", KEY)).status_code == 200
        assert openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY).images.generate(prompt="one").data
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong").models.list()
    finally:
        running.stop()


@pytest.mark.parametrize("key", ["ein-Schlüssel-mit-ü", "ключ-из-букв-🔑-🔑"])
def test_a_key_of_any_letters_opens_both_ways(first, tmp_path, key):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    running = Server("--bundle", str(first), "--key-file", str(tmp_path / "key"))
    try:
        running.wait()
        basic = base64.b64encode(f"anyone:{key}".encode())
        for given in (f"Bearer {key}".encode(), b"Basic " + basic):
            assert running.http.get("/v1/models", headers=[(b"Authorization", given)]).status_code == 200
        for wrong in (f"Bearer {key}x".encode(), b"Bearer \xff", b"Basic /w=="):
            assert running.http.get("/v1/models", headers=[(b"Authorization", wrong)]).status_code == 401
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "takes a key"),
        (["--batch", "0"], "--batch must be above 0"),
        (["--poll", "inf"], "--poll must be at most 86400 s, got inf"),
        (["--timeout", "nan"], "--timeout must be above 0"),
        (["--port", "99999"], "--port must be 1 to 65535, got 99999"),
        (["--host", "127.0.0.1:80", "--key-file", "KEY"], "--host must be a name or an address"),
        (["--window", "/proc/window"], "--window /proc/window must be a folder"),
        (["--key-file", "/nowhere"], "cannot be read"),
    ],
)
def test_a_server_that_would_be_open_or_useless_does_not_start(first, arguments, message, tmp_path):
    (tmp_path / "key").write_text(KEY)
    arguments = [str(tmp_path / "key") if word == "KEY" else word for word in arguments]
    running = Server("--bundle", str(first), *arguments)
    try:
        assert running.process.wait(30) == 10
        assert message in running.process.stderr.read()
    finally:
        running.http.close()
        running.process.stderr.close()


def test_a_taken_port_is_told_before_anything_is_loaded(first):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = Server("--bundle", str(first), "--port", str(port))
        try:
            assert running.process.wait(30) == 10
            told = running.process.stderr.read()
            assert f"port {port} of 127.0.0.1 is taken: give another --port" in told and "serving at" not in told
        finally:
            running.http.close()
            running.process.stderr.close()


def test_a_full_queue_says_when_to_come_again_and_a_slow_request_is_ended(first):
    running = Server("--bundle", str(first), "--queue", "4", "--batch", "2", "--timeout", "1.5")
    try:
        running.wait()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda seed: running.draw(prompt="one", n=2, seed=seed, steps=200), range(20)))
        by_status = {answer.status_code: answer for answer in answers}
        assert set(by_status) <= {200, 429, 504} and 429 in by_status and 504 in by_status
        assert 1 <= int(by_status[429].headers["Retry-After"]) <= 60
        assert "the queue holds 4 for each of 1 callers" in by_status[429].json()["error"]["message"]
        assert "within 1.5 s" in by_status[504].json()["error"]["message"]
        assert running.draw(prompt="one").status_code == 200  # what timed out left the batch
    finally:
        running.stop()


def test_greedy_requests_shut_nobody_out(first):
    """Eighteen large requests of one address, and a small one of the same address that comes after them."""
    running = Server("--bundle", str(first))
    large = {"prompt": "one", "n": 16, "steps": 200, "guidance": 3.0, "seed": 1}
    done = []

    def ask():
        with contextlib.suppress(httpx.HTTPError):
            done.append(httpx.post(f"{running.url}/v1/images/generations", json=large, timeout=60, trust_env=False))

    try:
        running.wait()
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(18)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while not done and time.monotonic() < deadline:  # one is drawn, one waits, the others are told to come again
            time.sleep(0.01)
        answers = [running.draw(prompt="one", seed=seed) for seed in range(5)]
        assert all(answer.status_code == 200 for answer in answers)
        assert {answer.status_code for answer in done} == {429} and len(done) <= 17
        assert "ask for fewer images or steps" in done[0].json()["error"]["message"]
        assert "diffusion_queue_work" in running.http.get("/metrics").text
    finally:
        running.stop(signal.SIGKILL)
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize(("proxy", "status"), [("127.0.0.1", 200), ("192.0.2.1", 429)])
def test_a_full_queue_is_full_for_the_caller_that_filled_it(first, proxy, status):
    """Who calls is told by a proxy's header, where the server was told of that proxy, and by nobody else's."""
    running = Server("--bundle", str(first), "--queue", "2", "--proxy", proxy)
    large = {"prompt": "one", "n": 16, "steps": 200, "guidance": 3.0, "seed": 1}
    done = []

    def ask():
        with contextlib.suppress(httpx.HTTPError):
            done.append(httpx.post(f"{running.url}/v1/images/generations", json=large, timeout=60, trust_env=False))

    try:
        running.wait()
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while not done and time.monotonic() < deadline:
            time.sleep(0.01)
        assert done[0].status_code == 429
        body = {"prompt": "one", "n": 4}
        assert running.draw(**body).status_code == 429
        forwarded = {"X-Forwarded-For": "198.51.100.7"}
        assert running.http.post("/v1/images/generations", json=body, headers=forwarded).status_code == status
    finally:
        running.stop(signal.SIGKILL)
        for thread in threads:
            thread.join(30)


def test_a_client_that_leaves_frees_its_place(first):
    running = Server("--bundle", str(first), "--batch", "1")
    try:
        running.wait()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{running.url}/v1/images/generations",
                json={"prompt": "one", "n": 16, "steps": 200},
                timeout=0.5,
                trust_env=False,
            )
        began = time.monotonic()
        assert running.draw(prompt="one").status_code == 200
        taken = time.monotonic() - began
        whole = running.draw(prompt="one", n=16, steps=200).json()["timing"]["drawn_ms"] / 1000
        assert taken < max(0.5 * whole, 1.0)
        assert 'diffusion_requests_total{status="499"} 1.0' in running.http.get("/metrics").text
    finally:
        running.stop()


def test_a_stop_draws_what_is_under_way(first):
    running = Server("--bundle", str(first))
    running.wait()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(running.draw(prompt="one", n=4, steps=150)))
    asking.start()
    deadline = time.monotonic() + 20
    while "diffusion_batch_rows_count 0" in running.http.get("/metrics").text and time.monotonic() < deadline:
        time.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    asking.join(30)
    assert running.process.wait(30) == 0
    assert answers and answers[0].status_code == 200
    running.http.close()
    running.process.stderr.close()


def test_the_window_tells_what_was_made(server):
    server.draw(prompt="two", n=3, seed=900)
    server.draw(prompt="two", seed=950, quality="fast")
    server.draw(prompt="two", seed=960, steps=4)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows = read_window(server.window).query("seed >= 900 and seed < 1000")
        if len(rows) == 5:
            break
        time.sleep(0.5)
    assert rows["seed"].tolist() == [900, 901, 902, 950, 960]
    assert rows["plan"].tolist() == ["own"] * 4 + ["custom"] and rows["nfe"].tolist() == [2, 2, 2, 2, 4]
    assert set(rows["class"]) == {"two"} and set(rows["digest"]) == {server.serving()["digest"]}
    assert (rows["drawn_ms"] > 0).all() and rows["features"].map(len).tolist() == [64] * 5


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
