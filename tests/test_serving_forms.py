"""Facts about requests in the forms that HTTP/1.1 allows and clients send, over real connections to a real server."""

import contextlib
import io
import json
import socket
import time

import openai
import pytest
from serving_world import Server, bundle_with_reference, pngs


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(
        "--bundle", str(bundle_with_reference(tmp_path_factory.mktemp("forms") / "digits")), "--batch", "4"
    )
    running.wait()
    yield running
    running.stop()


def request(*lines, path="/v1/images/generations", method="POST", version="1.1", host="localhost", **body):
    data = json.dumps({"prompt": "one", "seed": 5, **body}).encode() if method == "POST" else b""
    told = ["Content-Type: application/json", f"Content-Length: {len(data)}"] if data else []
    head = [f"{method} {path} HTTP/{version}", f"Host: {host}", *told, *lines, "", ""]
    return "\r\n".join(head).encode() + data


def answers(server, data, ends=True):
    """(status, headers, body) of each answer to what is sent; ends: whether nothing more is sent after it."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10) as one:
        one.settimeout(60)
        one.sendall(data)
        if ends:
            one.shutdown(socket.SHUT_WR)
        got = b""
        with contextlib.suppress(ConnectionError):
            while more := one.recv(65536):
                got += more
    found = []
    while got:
        head, _, got = got.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers["content-length"])
        found.append((int(first.split()[1]), headers, got[:size]))
        got = got[size:]
    return found


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_sends_no_more_gets_its_answer(server, version):
    expected = server.draw(prompt="one", seed=5).json()["data"]
    ((status, _, body),) = answers(server, request(version=version))
    assert status == 200 and json.loads(body)["data"] == expected


def test_it_gets_the_answers_to_all_that_it_asked(server):
    found = answers(server, request(seed=6) + request(path="/livez", method="GET") + request(seed=7))
    assert [status for status, *_ in found] == [200, 200, 200]
    seeds = [json.loads(body)["data"][0]["seed"] for _, _, body in (found[0], found[2])]
    assert seeds == [6, 7]


def test_it_gets_an_answer_that_takes_long(server):
    ((status, _, body),) = answers(server, request(n=16, steps=100))
    assert status == 200 and len(json.loads(body)["data"]) == 16


def test_one_that_closed_is_not_drawn_for(server):
    def count():
        lines = server.http.get("/metrics").text.splitlines()
        return sum(
            float(line.split()[1]) for line in lines if line.startswith('diffusion_requests_total{status="499"}')
        )

    before = count()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10) as one:
        one.sendall(request(n=16, steps=200, guidance=3.0))
    deadline = time.monotonic() + 30
    while count() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert count() == before + 1


def test_half_a_request_gets_none(server):
    assert answers(server, request()[:-3]) == []


@pytest.mark.parametrize("path", ["/", "/page.js", "/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json"])
def test_head_tells_what_get_would(server, path):
    told, got = server.http.head(path), server.http.get(path)
    assert told.status_code == got.status_code == 200 and told.content == b""
    assert told.headers["Content-Type"] == got.headers["Content-Type"]
    assert int(told.headers["Content-Length"]) > 0


def test_an_absolute_address_counts_as_its_host_and_path(server):
    own = request("Connection: close", path="http://localhost:8090/v1/images/generations", host="anything.example")
    ((status, _, body),) = answers(server, own)
    assert status == 200 and json.loads(body)["data"]
    other = request("Connection: close", path="http://evil.example/v1/models", method="GET")
    ((status, _, body),) = answers(server, other)
    assert status == 421 and b"not called evil.example" in body


def test_two_lengths_of_one_body_are_refused_and_end_the_connection(server):
    chunked = request("Transfer-Encoding: chunked", path="/livez", method="GET", host="localhost") + b"0\r\n\r\n"
    both = chunked.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1)
    ((status, headers, body),) = answers(server, both + request(path="/livez", method="GET"), ends=False)
    assert status == 400 and b"this one has both" in body and headers["connection"] == "close"


def test_what_is_not_there_names_what_is(server):
    unknown = server.http.get("/v1/image").json()["error"]["message"]
    assert unknown.startswith("GET /v1/image: Not Found; there are ") and "POST /v1/images/generations" in unknown
    wrong = server.http.put("/v1/images/generations")
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST"
    assert "it takes POST" in wrong.json()["error"]["message"]
    assert server.http.get("/v1/models/").json() == server.http.get("/v1/models").json()


def test_openais_other_routes_are_refused_by_name(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for ask in (client.images.edit, client.images.create_variation):
        more = {"prompt": "one"} if ask == client.images.edit else {}
        with pytest.raises(openai.NotFoundError, match="no image is taken in"):
            ask(image=io.BytesIO(b"x" * 100_000), **more)
    assert client.models.retrieve("digits").id == client.models.retrieve(server.serving()["id"]).id
    with pytest.raises(openai.NotFoundError, match="this server has digits/"):
        client.models.retrieve("dall-e-3")


@pytest.mark.parametrize(
    "body",
    [
        {"n": 1.0, "seed": 5.0},
        {"size": "8X8"},
        {"size": "AUTO"},
        {"user": "x" * 2000},
        {"safety_identifier": "x" * 2000},
        {"output_compression": 80.0, "partial_images": 0.0, "strip": 0.0},
    ],
)
def test_what_means_the_same_is_taken(server, body):
    told = {"prompt": "one", "seed": 5, **body}
    assert pngs(server.draw(**told)) == pngs(server.draw(prompt="one", seed=5))


def test_a_mark_before_json_is_no_part_of_it(server):
    kind = {"Content-Type": "application/json"}
    marked = b"\xef\xbb\xbf" + json.dumps({"prompt": "one", "seed": 5}).encode()
    answer = server.http.post("/v1/images/generations", content=marked, headers=kind)
    assert pngs(answer) == pngs(server.draw(prompt="one", seed=5))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"size": "1024x1024"}, "size: this model draws 8x8, got '1024x1024'"),
        ({"size": "8×8"}, "size: this model draws 8x8, got '8×8'"),
        ({"size": ""}, "size: this model draws 8x8, got ''"),
        ({"n": 1.5}, "n: Input should be a valid integer"),
        ({"n": True}, "n: Input should be a valid integer"),
        ({"n": "2"}, "n: Input should be a valid integer"),
    ],
)
def test_what_means_another_thing_is_refused_by_its_rule(server, body, message):
    answer = server.draw(**{"prompt": "one", **body})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message)
