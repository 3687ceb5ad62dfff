"""What each worker is given, and what the control plane is told of it. Its key is nowhere but in its file.

Three parts know a worker: Airflow by the public half of its key, the store by its access key, MLflow by its password.
Each part is told of its own alone, in one line of .env.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from certificates import private_key, public_jwk

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
BUCKET = "artifacts"
DOORS = {"control_plane": 8081, "mlflow": 5000, "store": 8333}
"""Ports of the proxy that workers use."""
NOT_WORKERS = {"admin", "mlflow", "store", "none"}


def encoded(value: Any) -> str:
    """JSON as one word of a file of settings."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def decoded(word: str) -> Any:
    """What `encoded` was given."""
    return json.loads(base64.b64decode(word))


def none() -> dict[str, str]:
    """The lines of a control plane without workers."""
    return {"WORKER_KEYS": encoded({"keys": []}), "WORKER_STORE_KEYS": encoded({}), "WORKER_LOGINS": encoded({})}


def names(values: Mapping[str, str]) -> list[str]:
    """Whom the control plane knows."""
    return sorted(decoded(values["WORKER_LOGINS"]))


def registrars(values: Mapping[str, str]) -> list[str]:
    """Those who may write to the registry: they take the queue `default`, the others compute only."""
    return sorted(name for name, one in decoded(values["WORKER_LOGINS"]).items() if not one["computes_only"])


def add(values: dict[str, str], name: str, only_computes: bool) -> dict[str, str]:
    """Let the control plane know a worker, newly where it knew it already; its file's settings.

    Raises: SystemExit for a name that is none.
    """
    if not NAME.fullmatch(name) or name in NOT_WORKERS:
        raise SystemExit(
            f"a worker's name must be of a-z, 0-9 and -, at most 31 characters, and none of "
            f"{', '.join(sorted(NOT_WORKERS))}; got {name!r}"
        )
    remove(values, name)
    key, password = private_key(), secrets.token_urlsafe(24)
    # A store whose access keys are told with an account in front keeps it.
    access = values["STORE_ACCESS_KEY"].rpartition(":")
    store = {"access": "".join(access[:2]) + secrets.token_hex(10), "secret": secrets.token_hex(20)}
    keys = decoded(values["WORKER_KEYS"])["keys"]
    values["WORKER_KEYS"] = encoded({"keys": [*keys, public_jwk(key, name)]})
    values["WORKER_STORE_KEYS"] = encoded({**decoded(values["WORKER_STORE_KEYS"]), name: store})
    login = {"password": password, "computes_only": only_computes}
    values["WORKER_LOGINS"] = encoded({**decoded(values["WORKER_LOGINS"]), name: login})
    host = values["ADO_HOSTS"].split(",")[0]
    return {
        "ADO_WORKER_NAME": name,
        "ADO_CONTROL_PLANE": _door(host, "control_plane"),
        "ADO_WORKER_KEY": base64.b64encode(key.encode()).decode(),
        "ADO_AUTHORITY": values["TLS_AUTHORITY"],
        "MLFLOW_TRACKING_URI": _door(host, "mlflow"),
        "MLFLOW_TRACKING_USERNAME": name,
        "MLFLOW_TRACKING_PASSWORD": password,
        "ADO_DVC_REMOTE": f"s3://{BUCKET}/dvc",
        "ADO_DVC_ENDPOINT": _door(host, "store"),
        "AWS_ACCESS_KEY_ID": store["access"],
        "AWS_SECRET_ACCESS_KEY": store["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "ADO_GIT_REMOTE": "origin",
        **({"ADO_QUEUES": "mlx"} if only_computes else {}),
    }


def remove(values: dict[str, str], name: str) -> bool:
    """Let the control plane forget a worker; whether it knew it."""
    known = name in names(values)
    keys = [key for key in decoded(values["WORKER_KEYS"])["keys"] if key["name"] != name]
    values["WORKER_KEYS"] = encoded({"keys": keys})
    for line in ("WORKER_STORE_KEYS", "WORKER_LOGINS"):
        values[line] = encoded({other: told for other, told in decoded(values[line]).items() if other != name})
    return known


def store_identities(values: Mapping[str, str]) -> str:
    """Who may do what in the store: only the service that makes the bucket and copies it whole is its administrator."""
    admin = (values["STORE_ADMIN_ACCESS_KEY"], values["STORE_ADMIN_SECRET_KEY"])
    people = [_identity("admin", *admin, ("Admin", "Read", "Write", "List", "Tagging"))]
    known = {"mlflow": {"access": values["STORE_ACCESS_KEY"], "secret": values["STORE_SECRET_KEY"]}}
    known |= decoded(values["WORKER_STORE_KEYS"])
    rights = tuple(f"{right}:{BUCKET}" for right in ("Read", "Write", "List"))
    people += [_identity(name, one["access"], one["secret"], rights) for name, one in known.items()]
    return encoded({"identities": people})


def _identity(name: str, access: str, secret: str, actions: Iterable[str]) -> dict[str, Any]:
    return {
        "name": name,
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": list(actions),
    }


def _door(host: str, name: str) -> str:
    return f"https://{f'[{host}]' if ':' in host else host}:{DOORS[name]}"
