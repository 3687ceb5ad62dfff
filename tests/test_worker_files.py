"""Facts about `make secrets`: what each worker is given, how one is locked out alone, how all of it is made anew."""

import base64
import json
import os
import ssl
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import jwt
import pytest
from fleet_world import make_secrets, read_values

from mlx_tasks.environment_file import read_env_file
from mlx_tasks.errors import DataError
from mlx_tasks.fleet.tokens import key_id, may_call, sign
from mlx_tasks.trust import AUTHORITY_VARIABLE, READ_BY, authorities, believe

HOST = "plane.example.org"


def decoded(word):
    return json.loads(base64.b64decode(word))


def known(folder):
    """Part of the control plane -> the workers that it knows."""
    values = read_values(folder / ".env")
    identities = decoded(values["STORE_IDENTITIES"])["identities"]
    return {
        "Airflow": {key["name"] for key in decoded(values["WORKER_KEYS"])["keys"]},
        "MLflow": set(decoded(values["WORKER_LOGINS"])),
        "store": {one["name"] for one in identities} - {"admin", "mlflow"},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A control plane with two workers; the second only computes."""
    made = tmp_path_factory.mktemp("plane")
    make_secrets(made, "--hosts", HOST, "--worker", "mac1")
    make_secrets(made, "--worker", "mac2", "--computes-only")
    return made


def test_each_workers_file_is_its_own_and_for_its_owner_alone(folder, repository):
    server, one, two = (read_values(folder / name) for name in (".env", "worker-mac1.env", "worker-mac2.env"))
    private = ("ADO_WORKER_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert all(one[name] and two[name] and one[name] != two[name] for name in private)
    held = set(one.values()) & set(server.values())
    assert held == {server["TLS_AUTHORITY"]}  # of the server's lines a worker holds the one that is no secret
    for name in (".env", "worker-mac1.env", "worker-mac2.env"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    for name in (".env", ".env.new", ".env.bak", "worker.env", "worker-mac2.env", "worker-mac2.env.new"):
        assert subprocess.run(["git", "-C", str(repository), "check-ignore", "-q", name]).returncode == 0, name
    assert "PRIVATE" not in base64.b64decode(server["WORKER_KEYS"]).decode()  # nor does the server hold a worker's key
    assert one["ADO_CONTROL_PLANE"] == f"https://{HOST}:8081" and one["MLFLOW_TRACKING_URI"] == f"https://{HOST}:5000"
    assert "ADO_QUEUES" not in one and two["ADO_QUEUES"] == "mlx"
    assert server["REGISTRARS"] == "admin,mac1"
    assert read_env_file(folder / "worker-mac1.env")["ADO_WORKER_NAME"] == "mac1"


def test_no_worker_administers_the_store(folder):
    identities = {
        one["name"]: one["actions"] for one in decoded(read_values(folder / ".env")["STORE_IDENTITIES"])["identities"]
    }
    rights = ["Read:artifacts", "Write:artifacts", "List:artifacts"]
    assert identities == {
        "admin": ["Admin", "Read", "Write", "List", "Tagging"], "mlflow": rights, "mac1": rights, "mac2": rights,
    }  # fmt: skip


def test_a_worker_is_known_by_the_key_that_it_alone_holds(folder):
    keys = {key["name"]: key for key in decoded(read_values(folder / ".env")["WORKER_KEYS"])["keys"]}
    mine = base64.b64decode(read_values(folder / "worker-mac1.env")["ADO_WORKER_KEY"]).decode()
    assert keys["mac1"]["kid"] == key_id(mine) != keys["mac2"]["kid"]
    token = sign(mine, "jobs/fetch/mac1")
    read = lambda name: jwt.decode(token, jwt.PyJWK(keys[name]), algorithms=["RS256"], audience="api")  # noqa: E731
    assert read("mac1")["method"] == "jobs/fetch/mac1"
    with pytest.raises(jwt.InvalidSignatureError):
        read("mac2")


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"method": "worker/a", "iat": 0, "exp": 10}, True),
        ({"method": "worker/b", "iat": 0, "exp": 10}, False),
        ({"iat": 0, "exp": 10}, False),
        ({"method": "worker/a", "iat": 0, "exp": 3600}, False),
    ],
)
def test_a_token_is_good_for_one_call_and_a_moment(claims, good):
    context = type("Context", (), {"method": "worker/a"})
    assert may_call(claims, context) == {"authorized": good}


def test_a_lost_mac_is_locked_out_alone(folder, tmp_path):
    for name in (".env", "worker-mac1.env", "worker-mac2.env"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    before, mac1 = read_values(tmp_path / ".env"), (tmp_path / "worker-mac1.env").read_text()
    lost = read_values(tmp_path / "worker-mac2.env")
    said = make_secrets(tmp_path, "--remove", "mac2")
    assert "docker compose up -d" in said and not (tmp_path / "worker-mac2.env").exists()
    assert known(tmp_path) == {"Airflow": {"mac1"}, "MLflow": {"mac1"}, "store": {"mac1"}}
    after = read_values(tmp_path / ".env")
    told = (tmp_path / ".env").read_text() + "".join(
        base64.b64decode(after[n]).decode() for n in after if "WORKER_" in n
    )
    told += base64.b64decode(after["STORE_IDENTITIES"]).decode()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        assert lost[name] not in told, name
    assert after["AIRFLOW_SIGNING_KEY"] != before["AIRFLOW_SIGNING_KEY"]  # it signed the token of the task at hand
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"WORKER_KEYS", "WORKER_LOGINS", "WORKER_STORE_KEYS", "STORE_IDENTITIES", "AIRFLOW_SIGNING_KEY"}
    assert (tmp_path / "worker-mac1.env").read_text() == mac1  # the others' files are as good as before
    for name in ("mac2", ""):  # `make lock-out` without WORKER
        with pytest.raises(AssertionError, match=f"there is no worker '{name}': the control plane knows mac1"):
            make_secrets(tmp_path, "--remove", name)


def test_rotating_leaves_no_secret_as_it_was_but_those_of_what_is_stored(folder, tmp_path):
    for name in (".env", "worker-mac1.env", "worker-mac2.env"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    before = {name: read_values(tmp_path / name) for name in (".env", "worker-mac1.env", "worker-mac2.env")}
    make_secrets(tmp_path, "--rotate")
    after = {name: read_values(tmp_path / name) for name in before}
    same = {name for name in before[".env"] if before[".env"][name] == after[".env"][name]}
    assert same == {"POSTGRES_PASSWORD", "AIRFLOW_FERNET_KEY", "ADO_HOSTS", "REGISTRARS"}
    for name in ("worker-mac1.env", "worker-mac2.env"):
        assert not {key for key in before[name] if before[name][key] == after[name][key]} & {
            "ADO_WORKER_KEY", "ADO_AUTHORITY", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
        }  # fmt: skip
    assert after["worker-mac2.env"]["ADO_QUEUES"] == "mlx"
    assert known(tmp_path) == {part: {"mac1", "mac2"} for part in ("Airflow", "MLflow", "store")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--worker", "Mac 2"], "a worker's name must be of a-z"),
        (["--worker", "../mac"], "a worker's name must be of a-z"),
        (["--worker", "admin"], "none of admin"),
        (["--hosts", "https://plane.example.org"], "without scheme and port"),
        (["--hosts", "plane.example.org:8080"], "without scheme and port"),
        (["--hosts", 'a.example.org";return 200'], "without scheme and port"),
        (["--computes-only"], "--worker NAME"),
        (["--certificate", "x.pem"], "belong together"),
    ],
)
def test_what_is_no_name_is_refused_and_nothing_is_written(options, said, repository, tmp_path):
    script = str(repository / "include/compose/make_secrets.py")
    done = subprocess.run(
        [sys.executable, script, "--folder", str(tmp_path), *options],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode and said in done.stderr and not list(tmp_path.iterdir())


def test_the_certificate_stays_until_a_name_is_missing_in_it(folder, tmp_path):
    (tmp_path / ".env").write_bytes((folder / ".env").read_bytes())
    before = read_values(tmp_path / ".env")
    make_secrets(tmp_path)
    assert read_values(tmp_path / ".env") == before
    make_secrets(tmp_path, "--hosts", f"{HOST},192.0.2.7,2001:db8::7")
    after = read_values(tmp_path / ".env")
    assert after["TLS_CERTIFICATE"] != before["TLS_CERTIFICATE"] and after["TLS_AUTHORITY"] == before["TLS_AUTHORITY"]
    make_secrets(tmp_path)
    assert read_values(tmp_path / ".env") == after


def test_a_worker_believes_its_control_planes_authority_beside_the_public_ones(folder, tmp_path, monkeypatch):
    """A real server with the proxy's certificate, and clients of the kinds that a worker has."""
    values = read_values(folder / ".env")
    for name in ("TLS_CERTIFICATE", "TLS_KEY"):
        (tmp_path / name).write_bytes(base64.b64decode(values[name]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "TLS_CERTIFICATE", tmp_path / "TLS_KEY")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}"
    try:
        for name in READ_BY:
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url, trust_env=False, verify=authorities())
        environment = {AUTHORITY_VARIABLE: values["TLS_AUTHORITY"], "ADO_STATE": str(tmp_path)}
        believe(environment)
        assert set(environment) == {AUTHORITY_VARIABLE, "ADO_STATE", *READ_BY}
        monkeypatch.setenv("SSL_CERT_FILE", environment["SSL_CERT_FILE"])
        assert httpx.get(url, trust_env=False, verify=authorities()).status_code == 204
        import requests

        assert requests.get(url, verify=environment["REQUESTS_CA_BUNDLE"], timeout=10).status_code == 204
        assert len(authorities().get_ca_certs()) > 50  # the public ones too: weights come from elsewhere
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError, match="ADO_AUTHORITY must be a certificate"):
        believe({AUTHORITY_VARIABLE: "bm9uZQ==", "ADO_STATE": str(tmp_path)})


def test_the_doctor_reaches_the_server_through_its_proxy(folder, tmp_path):
    """With what .env says and nothing else: by TLS, believing the control plane's own authority."""
    look = "import sys; from pathlib import Path; from mlx_tasks.environment_file import take_env_file\n"
    look += "from mlx_tasks.fleet.commands import own_address\ntake_env_file(Path(sys.argv[1]))\n"
    look += "import os; print(own_address(), os.environ['SSL_CERT_FILE'])"
    bare = {name: value for name, value in os.environ.items() if name not in (AUTHORITY_VARIABLE, *READ_BY)}
    command = [sys.executable, "-c", look, str(folder / ".env")]
    told = subprocess.run(command, env={**bare, "ADO_STATE": str(tmp_path)}, capture_output=True, text=True, check=True)
    address, believed = told.stdout.split()
    assert address == "https://127.0.0.1:8080"
    own = base64.b64decode(read_values(folder / ".env")["TLS_AUTHORITY"]).decode().strip()
    assert own in Path(believed).read_text()


def test_every_command_believes_it(folder, tmp_path):
    """Here one that has nothing to do with a fleet: a server of models reaches MLflow by the same proxy."""
    environment = {**os.environ, AUTHORITY_VARIABLE: "bm9uZQ==", "ADO_STATE": str(tmp_path)}
    command = [sys.executable, "-m", "mlx_tasks", "domains", "--help"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0  # asks nobody
    command = [sys.executable, "-m", "mlx_tasks", "deploy", "canary", "--model", "a@b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode and "ADO_AUTHORITY must be a certificate" in done.stderr
