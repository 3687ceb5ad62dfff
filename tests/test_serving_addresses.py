"""Facts about which servers a deployment asks, and that a key goes to no other."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlx_tasks.cli import main
from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.serving import deploy
from mlx_tasks.serving.addresses import check_address, configured

KEY = "k" * 20
HERE = {"ADO_SERVER_URL": "https://images.lan:8443/", "ADO_SERVER_URLS": "http://127.0.0.1:8090, https://b.lan/studio"}


class Listener:
    """A server that keeps what it is sent; `location`: where it redirects to."""

    def __init__(self, location=None):
        seen = self.seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append((self.path, self.headers.get("Authorization")))
                self.send_response(307 if location else 200)
                if location:
                    self.send_header("Location", location + self.path)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_what_is_configured_is_listed_once():
    assert configured(HERE) == ["https://images.lan:8443", "http://127.0.0.1:8090", "https://b.lan/studio"]
    assert configured({}) == [] == configured({"ADO_SERVER_URL": " ", "ADO_SERVER_URLS": ","})
    assert configured({"ADO_SERVER_URL": "http://a", "ADO_SERVER_URLS": "http://a/,http://b"}) == [
        "http://a",
        "http://b",
    ]


@pytest.mark.parametrize(
    "url", ["https://images.lan:8443", "https://IMAGES.lan:8443/", "http://127.0.0.1:8090", "https://b.lan:443/studio/"]
)
def test_a_configured_server_is_asked_with_its_key(url):
    assert check_address(url, KEY, HERE) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "https://images.lan",  # another port
        "http://images.lan:8443",  # another scheme
        "https://images.lan.evil.example:8443",
        "http://127.0.0.1:9999",  # loopback too: somebody else's port
        "http://localhost:8090",
        "https://b.lan/other",
        "https://b.lan",
        "http://[::1]:8090",
    ],
)
def test_a_key_goes_to_no_address_that_is_only_typed(url):
    with pytest.raises(DataError, match=r"not a configured server.*ADO_SERVER_URL or ADO_SERVER_URLS"):
        check_address(url, KEY, HERE)


@pytest.mark.parametrize(
    "url",
    [
        "", "images.lan", "ftp://images.lan", "https://", "https://user:word@images.lan:8443", "https://@images.lan:8443",
        "https://images.lan:8443?x=1", "https://images.lan:8443#x", "https://images.lan:x", "https://[::1", "file:///etc",
    ],
)  # fmt: skip
def test_what_is_no_servers_address_is_refused_by_its_rule(url):
    with pytest.raises(DataError, match="a server's address is"):
        check_address(url, KEY, HERE)


def test_a_key_goes_in_plain_text_only_where_that_is_told():
    plain = {"ADO_SERVER_URL": "http://mac2.lan:8090"}
    with pytest.raises(DataError, match="in plain text: use https, or set ADO_SERVER_PLAIN_HTTP=1"):
        check_address("http://mac2.lan:8090", KEY, plain)
    assert check_address("http://mac2.lan:8090", KEY, plain | {"ADO_SERVER_PLAIN_HTTP": "1"})
    assert check_address("http://mac2.lan:8090", None, plain)


def test_without_a_key_loopback_may_be_asked_and_nothing_else_that_is_not_configured():
    assert check_address("http://localhost:1234/", None, {}) == "http://localhost:1234"
    with pytest.raises(DataError, match="not a configured server, and without one"):
        check_address("http://169.254.169.254", None, HERE)


def test_the_command_sends_no_key_to_an_address_that_is_not_configured(monkeypatch, capsys):
    with Listener() as stranger:
        monkeypatch.setenv("MLX_TASKS_SERVER_KEY", KEY)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.delenv("ADO_SERVER_URL", raising=False)
        monkeypatch.delenv("ADO_SERVER_URLS", raising=False)
        code = main(["deploy", "verify", "--model", "m", "--url", stranger.url])
    assert code == ExitCode.BAD_INPUT and "not a configured server" in capsys.readouterr().err
    assert stranger.seen == []


def test_a_redirect_is_not_followed_with_the_key():
    with Listener() as stranger, Listener(stranger.url) as server:
        service = deploy._Service(server.url, KEY)
        with pytest.raises(DataError, match=r"redirects to .*and a key is taken nowhere else"):
            service.wait_for("digest", 5.0)
        with pytest.raises(DataError, match="redirects to"):
            service.draw({"seed": 1})
    assert stranger.seen == [] and server.seen[0] == ("/v1/models", f"Bearer {KEY}")


def test_the_form_offers_configured_servers_only(repository, monkeypatch):
    import importlib.util

    from airflow.sdk.definitions.param import ParamsDict
    from airflow.sdk.exceptions import AirflowException

    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("deploy_form", repository / "dags" / "deploy_champion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    form = ParamsDict({"url": module.PARAMS["url"]})
    assert form.validate() == {"url": "https://images.lan:8443"}
    form["url"] = ""
    assert form.validate() == {"url": ""}
    with pytest.raises((AirflowException, ValueError), match=r"evil"):
        form["url"] = "https://evil.example"
        form.validate()
