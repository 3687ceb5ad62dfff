"""Write the control plane's secrets to .env and the workers' settings to worker.env. Needs nothing but Python.

    python3 include/compose/make_secrets.py [--server http://127.0.0.1:8080] [--mlflow ...] [--store ...]

What .env holds already stays; what it lacks is added. Both files are for their owner alone, and git ignores them.
"""

from __future__ import annotations

import argparse
import base64
import os
import secrets
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MAKERS = {
    "POSTGRES_PASSWORD": lambda: secrets.token_hex(24),  # letters and digits: it becomes part of an address
    "AIRFLOW_FERNET_KEY": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "AIRFLOW_JWT_SECRET": lambda: secrets.token_hex(64),
    "AIRFLOW_API_SECRET_KEY": lambda: secrets.token_hex(32),
    "AIRFLOW_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(18),
    "GRAFANA_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(18),
    "STORE_ACCESS_KEY": lambda: secrets.token_hex(10),
    "STORE_SECRET_KEY": lambda: secrets.token_hex(20),
    "ALERT_TOKEN": lambda: secrets.token_hex(24),
    "ALERT_SECRET": lambda: secrets.token_hex(24),
}


def main() -> None:
    """Make both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="Airflow, as a worker reaches it")
    parser.add_argument("--mlflow", default="http://127.0.0.1:5000", help="MLflow, as a worker reaches it")
    parser.add_argument("--store", default="http://127.0.0.1:8333", help="the S3 store, as a worker reaches it")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where both files go (default: the checkout)")
    given = parser.parse_args()
    kept = _read(given.folder / ".env")
    added = {name: make() for name, make in MAKERS.items() if not kept.get(name)}
    values = kept | added
    _write(given.folder / ".env", "The control plane's secrets: docker compose reads them.", values)
    _write(
        given.folder / "worker.env",
        "A worker's settings: copy this file to each Mac, then `mlx-tasks worker --env worker.env`.",
        {
            "ADO_CONTROL_PLANE": given.server,
            "ADO_JWT_SECRET": values["AIRFLOW_JWT_SECRET"],
            "MLFLOW_TRACKING_URI": given.mlflow,
            "ADO_DVC_REMOTE": "s3://artifacts/dvc",
            "ADO_DVC_ENDPOINT": given.store,
            "AWS_ACCESS_KEY_ID": values["STORE_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": values["STORE_SECRET_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "ADO_GIT_REMOTE": "origin",
        },
    )
    print(f".env: {len(added)} made, {len(values) - len(added)} kept; worker.env is for the workers")


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = (line.partition("=") for line in path.read_text().splitlines() if line.strip() and line[0] != "#")
    return {name.strip(): value.strip() for name, _, value in lines}


def _write(path: Path, title: str, values: dict[str, str]) -> None:
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"# {title}\n" + "".join(f"{name}={value}\n" for name, value in values.items()))
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
