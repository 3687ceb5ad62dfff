"""The stack's secrets: made once, kept in one file that only its owner may read."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path

from mlx_tasks.files import atomic_write_text

USER = "admin"


def load_secrets(state: Path) -> dict[str, str]:
    """jwt_secret, api_secret_key, fernet_key and the UI's password; made at the first call."""
    path = state / "secrets.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        pass
    values = {
        "jwt_secret": secrets.token_hex(64),
        "api_secret_key": secrets.token_hex(32),
        "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "password": secrets.token_urlsafe(9),
    }
    atomic_write_text(path, json.dumps(values))
    os.chmod(path, 0o600)
    return values


def write_passwords(airflow_home: Path, password: str) -> Path:
    """The file Airflow's simple auth manager reads its one user's password from."""
    path = airflow_home / "simple_auth_manager_passwords.json"
    atomic_write_text(path, json.dumps({USER: password}))
    os.chmod(path, 0o600)
    return path
