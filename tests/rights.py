"""Who knocks at which door of a control plane, with what in hand; `test_fleet.py` says what each gets.

Callers hold what they hold in life: nobody nothing, a worker its file of settings, the operator `.env`.
"""

from __future__ import annotations

import base64
import ssl
import time
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fleet_world import Fleet, read_values

from mlx_tasks.fleet.tokens import key_id, sign

USERS = {"aud": "apache-airflow", "sub": "admin", "username": "admin", "role": "admin", "teams": []}
"""What a token of Airflow's administrator says."""
EVIL = {"Origin": "https://evil.example"}
REGISTRY = "/api/2.0/mlflow/registered-models"


@cache
def stranger() -> str:
    """A worker's key that no control plane knows, as its file of settings has one."""
    made = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return base64.b64encode(made).decode()


class Knocker:
    """Requests at the doors of a fleet, over TLS that its own authority vouches for."""

    def __init__(self, world: Fleet) -> None:
        self.world, self.values = world, world.values
        authority = base64.b64decode(self.values["TLS_AUTHORITY"]).decode()
        self.http = httpx.Client(
            verify=ssl.create_default_context(cadata=authority), trust_env=False, timeout=30, follow_redirects=False
        )

    def at(self, door: str, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; its path goes as it is, dots and all."""
        base = httpx.URL(self.world.doors[door])
        return self.http.request(method, base.copy_with(raw_path=path.encode()), **options)

    def key(self, worker: str) -> str:
        """A worker's private key."""
        settings = read_values(self.world.secrets / f"worker-{worker}.env")
        return base64.b64decode(settings["ADO_WORKER_KEY"]).decode()

    def login(self, who: str) -> tuple[str, str]:
        """MLflow's login of a worker, or of the operator."""
        if who == "admin":
            return who, self.values["MLFLOW_ADMIN_PASSWORD"]
        return who, read_values(self.world.secrets / f"worker-{who}.env")["MLFLOW_TRACKING_PASSWORD"]

    def edge(self, worker: str, method: str, **claims: Any) -> dict[str, str]:
        """A worker's token for one call of its own door; with claims, one that it made itself."""
        if not claims:
            return {"Authorization": sign(self.key(worker), method)}
        return {"Authorization": self.signed(self.key(worker), {"aud": "api", "method": method} | claims)}

    def stranger(self, method: str) -> dict[str, str]:
        """The same by a key that nobody knows, under the name of one that is known."""
        made = base64.b64decode(stranger()).decode()
        headers = {"kid": key_id(self.key("alpha"))}
        now = int(time.time())
        claims = {"aud": "api", "method": method, "iat": now, "nbf": now, "exp": now + 10}
        return {"Authorization": jwt.encode(claims, made, algorithm="RS256", headers=headers)}

    @staticmethod
    def signed(key: str | None, claims: dict[str, Any], kid: str = "") -> str:
        """A token of these claims under a key's name, by this key or by none."""
        now = int(time.time())
        stamped = {"iat": now, "nbf": now, "exp": now + 600, "jti": uuid.uuid4().hex} | claims
        headers = {"kid": kid or key_id(key or "")}
        return jwt.encode(stamped, key, algorithm="RS256" if key else "none", headers=headers)


def _registration(knocker: Knocker, headers: Callable[[str], dict[str, str]], door: str = "workers") -> int:
    """A registration that no server takes (400), unless the caller is refused before (403)."""
    method = f"worker/knock-{uuid.uuid4().hex[:8]}"
    told = {"airflow_version": "0", "edge_provider_version": "0"}
    body = {"state": "starting", "jobs_active": 0, "queues": ["mlx"], "sysinfo": told}
    return knocker.at(door, "POST", f"/edge_worker/v1/{method}", json=body, headers=headers(method)).status_code


def airflow(knocker: Knocker) -> dict[str, int]:
    """Row -> the status that came."""
    user = knocker.world.api._headers()  # the operator's, by name and password
    own = jwt.get_unverified_header(user["Authorization"].split()[1])["kid"]
    edge = knocker.edge

    def connections(key: str | None, kid: str) -> int:
        token = knocker.signed(key, USERS, kid)
        answer = knocker.at("airflow", "GET", "/api/v2/connections", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code

    task = {"aud": "urn:airflow.apache.org:task", "sub": str(uuid.uuid4())}
    other = lambda method: edge("alpha", "worker/another")  # noqa: E731
    year = lambda method: edge("alpha", method, exp=int(time.time()) + 31_000_000)  # noqa: E731
    return {
        "the operator reads connections": knocker.at("airflow", "GET", "/api/v2/connections", headers=user).status_code,
        "nobody reads connections": knocker.at("airflow", "GET", "/api/v2/connections").status_code,
        "the control plane's key signs an administrator's token": connections(
            base64.b64decode(knocker.values["AIRFLOW_SIGNING_KEY"]).decode(), own
        ),
        "a worker's key signs the same": connections(knocker.key("alpha"), key_id(knocker.key("alpha"))),
        "a worker's key signs the same in the control plane's name": connections(knocker.key("alpha"), own),
        "no key signs the same": connections(None, own),
        "a worker forges a task's token": knocker.at(
            "workers", "GET", "/execution/variables/any",
            headers={"Authorization": f"Bearer {knocker.signed(knocker.key('alpha'), task, own)}"},
        ).status_code,
        "a worker's own call": _registration(knocker, lambda method: edge("alpha", method)),
        "a worker's call of another kind": _registration(knocker, other),
        "a worker's token for a year": _registration(knocker, year),
        "a stranger's key": _registration(knocker, knocker.stranger),
        "no token": _registration(knocker, lambda method: {"Authorization": ""}),
        "a worker's call at the people's door": _registration(knocker, lambda m: edge("alpha", m), "airflow"),
        **{
            f"the REST API at the workers' door, as {path}": knocker.at(
                "workers", "GET", path, headers=user
            ).status_code
            for path in (
                "/api/v2/connections", "/execution/../api/v2/connections", "/execution/%2e%2e/api/v2/connections",
                "/execution/..%2fapi/v2/connections", "//api/v2/connections", "/auth/token", "/",
                "/api/v2/monitor/health/../../connections",
            )
        },
        "its health at the workers' door": knocker.at("workers", "GET", "/api/v2/monitor/health").status_code,
        "another site's page": knocker.at(
            "airflow", "POST", "/api/v2/dags/fleet_chain/dagRuns", headers=user | EVIL, json={}
        ).status_code,
        "a name that is not this machine's": knocker.at(
            "airflow", "GET", "/api/v2/version", headers={"Host": "rebound.example:8080"}
        ).status_code,
    }  # fmt: skip


def mlflow(knocker: Knocker) -> dict[str, int]:
    """Row -> the status that came; `alpha` may write to the registry, `computes` may not."""

    def ask(who: str | None, method: str, path: str, body: Any, **more: Any) -> int:
        login = knocker.login(who) if who else None
        answer = knocker.at("mlflow", method, path, json=body, auth=login, **more)
        return answer.status_code

    def begin(who: str) -> str:
        made = knocker.at(
            "mlflow", "POST", "/api/2.0/mlflow/experiments/create", auth=knocker.login(who),
            json={"name": f"{who}-{uuid.uuid4().hex[:8]}"},
        )  # fmt: skip
        return made.raise_for_status().json()["experiment_id"]

    def log(who: str, experiment: str) -> int:
        return ask(who, "POST", "/api/2.0/mlflow/runs/create", {"experiment_id": experiment, "start_time": 1})

    ask("alpha", "POST", f"{REGISTRY}/create", {"name": "sampler"})
    run = knocker.at(
        "mlflow", "POST", "/api/2.0/mlflow/runs/create", auth=knocker.login("alpha"),
        json={"experiment_id": begin("alpha"), "start_time": 1},
    ).json()["run"]["info"]  # fmt: skip
    source = {"name": "sampler", "source": f"{run['artifact_uri']}/bundle", "run_id": run["run_id"]}
    alias = {"name": "sampler", "alias": "champion", "version": "1"}
    password = {"username": "admin", "password": "of-my-own-choice-1"}
    return {
        "nobody looks at runs": ask(None, "POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1}),
        "a wrong password": knocker.at(
            "mlflow", "POST", "/api/2.0/mlflow/experiments/search", json={}, auth=("alpha", "x")
        ).status_code,
        "a worker logs": log("computes", begin("computes")),
        "a worker logs in another's experiment": log("computes", begin("alpha")),
        "one that registers makes a version": ask("alpha", "POST", "/api/2.0/mlflow/model-versions/create", source),
        "one that registers moves an alias": ask("alpha", "POST", f"{REGISTRY}/alias", alias),
        "one that computes makes a version": ask(
            "computes", "POST", "/api/2.0/mlflow/model-versions/create", source
        ),
        "one that computes moves an alias": ask("computes", "POST", f"{REGISTRY}/alias", alias),
        "one that computes removes an alias": ask("computes", "DELETE", f"{REGISTRY}/alias", alias),
        "one that computes takes a name": ask("computes", "POST", f"{REGISTRY}/create", {"name": "other-sampler"}),
        "one that computes takes a name another way": ask(
            "computes", "POST", "/ajax-api/2.0/mlflow/registered-models/create", {"name": "other-sampler"}
        ),
        "one that computes reads the registry": ask("computes", "GET", f"{REGISTRY}/get?name=sampler", None),
        "a worker gives the administrator a password": ask(
            "alpha", "PATCH", "/api/2.0/mlflow/users/update-password", password
        ),
        "another site's page": ask("admin", "POST", f"{REGISTRY}/alias", alias, headers=EVIL),
    }  # fmt: skip


def watch(knocker: Knocker) -> dict[str, int]:
    """Prometheus and Alertmanager, which know no logins; the latter starts trainings."""
    admin = ("admin", knocker.values["WATCH_PASSWORD"])
    alert = [{"labels": {"alertname": "Trial", "redo": "train"}}]
    own = {"Origin": knocker.world.doors["alertmanager"]}
    post = lambda **more: knocker.at("alertmanager", "POST", "/api/v2/alerts", json=alert, **more).status_code  # noqa: E731
    return {
        "nobody posts an alert": post(),
        "another site's page, through the operator's browser": post(auth=admin, headers=EVIL),
        "a page without an address, through it": post(auth=admin, headers={"Origin": "null"}),
        "its own page": post(auth=admin, headers=own),
        "nobody reads Prometheus": knocker.at("prometheus", "GET", "/api/v1/targets").status_code,
        "the operator reads Prometheus": knocker.at(
            "prometheus", "GET", "/api/v1/targets", auth=admin
        ).status_code,
    }  # fmt: skip
