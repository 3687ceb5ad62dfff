"""What looks like a secret, by its name and by its text."""

from __future__ import annotations

import orchestration as o
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_tasks.workspace.secrecy import secret_name, secrets_in

KEY = "-----BEGIN OPENSSH PRIVATE" + " KEY-----"
AMAZON = "AKIA" + "IOSFODNN7EXAMPL2"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("worker.env", True), (".env.new", True), ("a/.ENV.bak", True), ("SERVER.KEY", True), ("x.pem.old", True),
        ("alert_token", True), ("AlertToken.json", True), ("my-api-key.txt", True), ("id_ed25519.pub", True),
        ("secrets/x.yaml", True), (".aws/config", True), ("kubeconfig-prod", False), ("kubeconfig.yaml", True),
        ("tokenizer.json", False), ("mlx_tasks/stack/secrets.py", False), ("monkey.yaml", False),
        (".env.example", False),
        ("include/compose/make_secrets.py", False), ("keyframes.json", False), ("docs/secrets.md", False),
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name, secret):
    assert secret_name(name) == secret


SECRETS = (
    KEY, f"id = {AMAZON}", "ghp_" + "a1B2" * 9, 'password = "correct-horse"', "api_key: hunter22", "TOKEN=onlyletters",
    "export DB_PASSWORD=onlyletters", "https://user:p4ssword@host/x", "Authorization: Bearer abcdef0123456789",
    '{"client_secret": "abcdefgh"}', "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
)  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_known_by_its_text(text):
    for content in (text.encode(), f"first\n{text}\r\nlast".encode(), f"x\n{text}".encode("utf-16")):
        (found,) = secrets_in(content)
        assert found.line == (1 if content == text.encode() else 2)


@pytest.mark.parametrize(
    "text",
    [
        "token = os.environ['TOKEN']", "password: ${DB_PASSWORD}", "api_key = settings.key_1", "max_tokens: 4096",
        "https://user:${PASSWORD}@host", "secret = load_secrets(state)", "password_file: /run/secrets/x1",
        "tokens: list[int] = []", "TOKEN = 3", '"token": "<your token>"', "PASSWORD=$(cat file)",
        "ALTER ROLE x PASSWORD :'password'", "https://user:password@host",
    ],
)  # fmt: skip
def test_code_that_reads_a_secret_holds_none(text):
    assert list(secrets_in(text.encode())) == []


def test_the_projects_own_files_hold_no_secret(repository):
    for name in o.run_git(repository, "ls-files", "mlx_tasks", "dags", "plugins", "include", "docs", "*.y*ml").split():
        assert not secret_name(name), name
        assert list(secrets_in((repository / name).read_bytes())) == [], name


@given(st.binary(max_size=2000))
def test_any_bytes_can_be_read_for_secrets(content):
    list(secrets_in(content))
