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
        ("mlx_tasks/secrets_local.py", True), ("dags/LocalSettings.py", True), ("include/passwords.py", True),
        ("include/secrets/prod.sh", True), ("include/service-account.json", True), ("include/auth.json", True),
        ("dags/airflow_variables.json", True), ("include/key.json", True), ("include/.vault_pass", True),
        ("include/keyword.json", False), ("mlx_tasks/author.py", False), ("mlx_tasks/local.py", False),
        ("include/compose/make_secrets.py", False), ("keyframes.json", False), ("docs/secrets.md", False),
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name, secret):
    assert secret_name(name) == secret


SECRETS = (
    KEY, f"id = {AMAZON}", "ghp_" + "a1B2" * 9, 'password = "correct-horse"', "api_key: hunter22", "TOKEN=onlyletters",
    "export DB_PASSWORD=onlyletters", "https://user:p4ssword@host/x", "Authorization: Bearer abcdef0123456789",
    '{"client_secret": "abcdefgh"}', "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "password: letmein", 'passphrase = "correct horse battery"', 'DB_PASS = "hunter2xyz"', "DB_PASS=hunter2xyz",
    "user: {name: me, pass: hunter22}", 'os.environ["API_TOKEN"] = "a1b2c3d4"', 'getenv("TOKEN", "a1b2c3d4")',
    'login("password", "hunter22")', "--password hunter22", "ENV API_TOKEN abc123def",
    "CREATE USER x IDENTIFIED BY 'word'",
    "machine host login me password hunter22", "<password>hunter</password>", "curl -u me:hunter22 host",
    "SECRET_KEY = 'a-9$k!abc{d<e'", 'token = """abcdef12"""', 'token: Final[str] = "abcdef12"',
    'f(token=str("abcdef12"))',
    'KEY = "d41d8cd98f00b204e9800998ecf8427e"', "tls.key: LS0tLS1CRUdJTi" + "BSU0EgUFJJVkFURSBLRVktLS0",
    "key: GOCSPX-" + "a1" * 12,
    "https://x.blob.core.windows.net/c?sv=2020&sig=abcDEF12345%2Fab", "https://" + "a1b2" * 5 + "@host/x.git",
    "https://discord.com/api/webhooks/1234567890123/" + "aB3-" * 10,
    "https://api.telegram.org/bot123456789:AA" + "a1_" * 11,
    'password = "${HERE}"; password = "hunter22"', "PuTTY-User-Key-File-" + "3: ssh-ed25519",
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
        "password: str", "password: SecretStr", "secret: db_password", "token: settings.token", "password: string",
        "def login(password: str, token: bytes):", 'key = "train/frechet_distance"', "pwd = os.getcwd()",
        "password = load",
        'password = f"{word}"', "--password $PASSWORD", "the password must be changed", "<password>...</password>",
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
