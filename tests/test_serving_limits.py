"""Facts about attackers without the key, and careless clients with it: memory and places stay for the others.

A real server, attacked over loopback; it may have 256 file descriptors, as a process on macOS has.
"""

import contextlib
import json
import resource
import signal
import socket
import sys
import threading
import time

import httpx
import psutil
import pytest
from serving_world import Server, bundle_with_reference, pngs

from mlx_tasks.errors import DataError
from mlx_tasks.serving.connections import Limits, address_of

KEY = "a-key-of-some-length"
CLIENT_S = 2.0
GROWTH = 80e6
"""Bytes that a server's memory may grow by under any of these attacks: each would bring hundreds of megabytes."""
DRAWING = 40.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("limits")
    (place / "key").write_text(KEY)
    bundle = bundle_with_reference(place / "digits")
    few = (256, 256)
    running = Server(
        "--bundle", str(bundle), "--key-file", str(place / "key"), "--client-timeout", str(CLIENT_S), key=KEY,
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few),
    )  # fmt: skip
    running.wait()
    pngs(running.draw(prompt="one"))
    yield running
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(30)
    assert "Traceback" not in running.process.stderr.read()
    running.process.stderr.close()


@contextlib.contextmanager
def memory_stays(server):
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < GROWTH


@contextlib.contextmanager
def connected(server, count=1, source=None):
    sockets = []
    try:
        for _ in range(count):
            address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
            sockets.append(socket.create_connection(address, 10, source_address=source and (source, 0)))
        yield sockets
    finally:
        for one in sockets:
            one.close()


def everything(one, patience_s=20.0):
    """What a connection still gives until it ends.  Raises: TimeoutError where it does not end."""
    one.settimeout(patience_s)
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := one.recv(65536):
            data += more
    return data


def pour(one, piece, count):
    """Send a piece so often; the pieces that were taken before the server ended it."""
    one.settimeout(10)
    for sent in range(count):
        try:
            one.sendall(piece)
        except OSError:
            return sent
    return count


def honest(server):
    """Somebody else with the key gets an image, over a connection of its own, in good time."""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(
        f"{server.url}/v1/images/generations", json={"prompt": "one"}, headers=headers, timeout=DRAWING, trust_env=False
    )
    assert pngs(answer) and time.monotonic() - began < DRAWING


def head(*lines, path="/v1/images/generations", method="POST"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


JSON = "Content-Type: application/json"
WITH_KEY = f"Authorization: Bearer {KEY}"


def test_idle_connections_lock_nobody_out(server):
    with connected(server, 300) as sockets:
        assert psutil.Process(server.process.pid).num_fds() < 256
        honest(server)
        ended = everything(sockets[0], 5)
    assert ended == b""  # the one that was idle longest had to go


def test_slow_headers_lock_nobody_out_and_end(server):
    with connected(server, 200) as sockets:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        honest(server)
        last, began = sockets[-1], time.monotonic()
        while time.monotonic() - began < 10 * CLIENT_S:
            try:
                last.sendall(b"x")  # always something new, never a whole header
            except OSError:
                break
            time.sleep(0.1)
        assert b" 408 " in everything(last)


@pytest.mark.parametrize("piece", [b"x" * 65536, b"x: y\r\n" * 10_000], ids=["one line", "many lines"])
def test_unfinished_headers_do_not_stay_in_memory(server, piece):
    with memory_stays(server), connected(server, 60) as sockets:
        taken = 0
        for one in sockets:
            with contextlib.suppress(OSError):
                one.sendall(b"GET / HTTP/1.1\r\n")
            taken += pour(one, piece, 100)
        honest(server)
    assert taken < 60 * 100  # each was ended on the way
    with connected(server) as (one,):
        one.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert b" 431 " in everything(one)


def test_whole_headers_have_a_limit_too(server):
    with connected(server) as (one,):
        one.sendall(head("X: " + "x" * 60_000, path="/livez", method="GET"))
        assert b" 431 " in everything(one)


@pytest.mark.parametrize("how", ["Content-Length: 9000000000", "Transfer-Encoding: chunked"])
def test_without_the_key_no_body_is_read(server, how):
    with memory_stays(server), connected(server, 8) as sockets:
        for one in sockets:
            one.sendall(head(how))
            one.settimeout(10)
            assert b" 401 " in one.recv(4096)  # before a byte of the body
            taken = pour(one, (b"10000\r\n" + b"x" * 65536 + b"\r\n"), 400)
            assert taken < 400
        honest(server)


def test_a_refused_body_that_ends_soon_leaves_the_connection_in_use(server):
    with connected(server) as (one,):
        one.settimeout(10)
        one.sendall(head("Content-Length: 50000"))
        assert b" 401 " in one.recv(4096)
        one.sendall(b"x" * 50_000 + head("Connection: close", path="/livez", method="GET"))
        assert b" 200 " in everything(one)


def test_a_client_that_asks_first_is_told_before_it_sends(server):
    ask = ("Expect: 100-continue", JSON, "Content-Length: 16")
    with connected(server, 2) as (stranger, known):
        stranger.sendall(head(*ask))
        told = everything(stranger)
        assert b" 401 " in told and b" 100 " not in told
        known.sendall(head(*ask, WITH_KEY, "Connection: close"))
        known.settimeout(10)
        assert known.recv(4096).startswith(b"HTTP/1.1 100 ")
        known.sendall(b'{"prompt":"one"}')
        assert b" 200 " in everything(known, DRAWING)


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        (("Content-Length: 70000", JSON), 413, b"got 70000"),
        (("Transfer-Encoding: chunked", JSON), 413, b"got none"),
        (("Transfer-Encoding: chunked", "Content-Length: 2", JSON), 413, b"got none"),
        (("Content-Length: 2", JSON, "Content-Encoding: gzip"), 415, b"got 'gzip'"),
        (("Content-Length: 2", "Content-Type: text/plain"), 400, b"got text/plain"),
        (("Content-Length: 2",), 400, b"Content-Type: application/json, got none"),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused_before_it_comes(server, headers, status, message):
    with connected(server) as (one,):
        one.sendall(head(WITH_KEY, *headers, "Connection: close"))
        answer = everything(one)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and message in answer


def test_a_slow_body_is_ended(server):
    with connected(server, 2) as (slow, silent):
        slow.sendall(head(WITH_KEY, "Content-Length: 1000", JSON) + b"{")
        silent.sendall(head(WITH_KEY, "Content-Length: 1000", JSON))
        assert b" 408 " in everything(slow) and b" 408 " in everything(silent)


def test_requests_far_ahead_of_the_one_that_is_answered_end_the_connection(server):
    body = json.dumps({"prompt": "one", "n": 16, "steps": 200}).encode()
    with memory_stays(server), connected(server) as (one,):
        one.sendall(head(WITH_KEY, f"Content-Length: {len(body)}", JSON) + body)
        assert pour(one, b"x" * 65536, 1000) < 1000
    honest(server)


def test_a_few_pipelined_requests_are_answered_in_turn(server):
    with connected(server) as (one,):
        last = head("Connection: close", path="/livez", method="GET")
        one.sendall(head(path="/livez", method="GET") * 20 + last)
        assert everything(one).count(b'{"status":"alive"}') == 21


def test_a_client_that_never_reads_is_ended(server):
    request = head(WITH_KEY, path="/openapi.json", method="GET")
    with memory_stays(server), connected(server, 3) as sockets:
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(1.0)
            with contextlib.suppress(OSError):  # no more is taken: the server waits for its answers to be read
                for _ in range(2000):
                    one.sendall(request * 20)
        honest(server)
        deadline, process = time.monotonic() + 15 * CLIENT_S, psutil.Process(server.process.pid)
        ports = {one.getsockname()[1] for one in sockets}
        while time.monotonic() < deadline:
            held = {c.raddr.port for c in process.net_connections("tcp") if c.raddr and c.status == "ESTABLISHED"}
            if not held & ports:
                break
            time.sleep(0.1)
        assert not held & ports


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"],
)
def test_what_is_no_request_is_answered_and_ended(server, nonsense):
    with connected(server) as (one,):
        one.sendall(nonsense + b"\r\n\r\n")
        answer = everything(one)
        assert b" 400 " in answer and b'"invalid_request_error"' in answer


def test_a_broken_chunk_under_a_request_is_answered_once(server):
    with connected(server, 2) as (stranger, known):
        stranger.sendall(head("Transfer-Encoding: chunked") + b"no chunk\r\n\r\n")
        known.sendall(head(WITH_KEY, "Transfer-Encoding: chunked", path="/livez") + b"no chunk\r\n\r\n")
        assert b" 400 " in everything(stranger) and b" 400 " in everything(known)
    honest(server)


@pytest.mark.skipif(sys.platform != "linux", reason="other loopback addresses are there on Linux alone")
def test_one_address_never_takes_the_places_of_another(server):
    """Half of the places are one address' at most, even while all of them are in use."""
    body = json.dumps({"prompt": "one", "n": 16, "steps": 200}).encode()
    ask = head(WITH_KEY, f"Content-Length: {len(body)}", JSON) + body
    with connected(server, 100, "127.0.0.2") as greedy:

        def send(one):
            with contextlib.suppress(OSError):
                one.sendall(ask)

        threads = [threading.Thread(target=send, args=(one,)) for one in greedy]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.http.get("/livez").status_code == 200


def test_too_few_descriptors_are_refused_with_the_remedy():
    assert Limits.within(256).connections == 128 and Limits.within(256).per_address == 64
    assert Limits.within(20_000).connections == 512
    with pytest.raises(DataError, match="ulimit -n"):
        Limits.within(100)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_whom_an_address_counts_for(one, other, same):
    assert (address_of(one) == address_of(other)) == same
