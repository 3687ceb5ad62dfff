"""The stack's secrets: made once, kept in one file that only its owner may read."""

from __future__ import annotations

import base64
import json
import os
import secrets
import tempfile
from pathlib import Path

from mlx_tasks.stack.layout import private_folder

USER = "admin"


def load_secrets(state: Path) -> dict[str, str]:
    """jwt_secret, api_secret_key, fernet_key, the UI's password, and what senders of alerts prove themselves by.

    Made at the first call; what a file from before lacks is added.
    """
    path = state / "secrets.json"
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        kept = {}
    values = {
        "jwt_secret": secrets.token_hex(64),
        "api_secret_key": secrets.token_hex(32),
        "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "password": secrets.token_urlsafe(9),
        "alert_token": secrets.token_urlsafe(32),
        "alert_secret": secrets.token_urlsafe(32),
    }
    if set(values) <= set(kept):
        return kept
    values |= kept
    private_folder(state)
    _write_private(path, json.dumps(values))
    return values


def write_passwords(airflow_home: Path, password: str) -> Path:
    """The file Airflow's simple auth manager reads its one user's password from."""
    path = private_folder(airflow_home) / "simple_auth_manager_passwords.json"
    _write_private(path, json.dumps({USER: password}))
    return path


def _write_private(path: Path, text: str) -> None:
    """Replace a file, which is its owner's alone (0600) from the first byte."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
