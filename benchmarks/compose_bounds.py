"""What the engine makes of each service's limits, and what the doors of the proxy answer whom."""

from __future__ import annotations

import base64
import re
import ssl
from pathlib import Path

import boto3
import httpx
import yaml
from botocore.exceptions import ClientError
from compose_plane import ONCE, PORTS, Plane

NEEDED = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "SETGID": 6, "SETUID": 7}
"""Capabilities that a service may ask for, and their bits."""


def services_are_bound(plane: Plane) -> str:
    """Each lasting service as it runs: its file system, capabilities, limits and user, against the file and /proc."""
    wanted = yaml.safe_load((plane.server / "docker-compose.yaml").read_text())["services"]
    closed, roots = 0, []
    for service, one in plane.containers().items():
        limits, asked = one["HostConfig"], wanted[service]
        assert limits["CapDrop"] == ["ALL"] and not limits["Privileged"], service
        assert limits["Memory"] > 0 and limits["PidsLimit"] > 0, service
        assert limits["ReadonlyRootfs"] == bool(asked.get("read_only")), service
        if service in ONCE:
            continue
        status = Path(f"/proc/{one['State']['Pid']}/status").read_text()
        told = dict(re.findall(r"^(\w+):\s+(\S+)", status, re.M))
        granted = sum(1 << NEEDED[name] for name in asked.get("cap_add", ()))
        assert int(told["CapBnd"], 16) == granted and told["NoNewPrivs"] == "1", (service, told)
        assert int(told["CapEff"], 16) in (0, granted), (service, told)
        roots += [service] if told["Uid"] == "0" else []
        if asked.get("read_only"):
            look = (
                "for one in / /etc /usr /opt; do ! touch $one/written 2> /dev/null || exit 1; done; touch /tmp/written"
            )
            plane.compose("exec", "-T", "--user", "root", service, "sh", "-c", look)
            closed += 1
    return (
        f"{closed} of {len(plane.containers()) - len(ONCE)} file systems closed, {', '.join(roots) or 'nobody'} as root"
    )


def doors_ask(plane: Plane) -> str:
    """No login, a wrong one, another name and another site's page are refused at every door; a login is not."""
    logins = {
        "mlflow": ("admin", plane.secret("MLFLOW_ADMIN_PASSWORD")),
        "prometheus": ("admin", plane.secret("WATCH_PASSWORD")),
        "alertmanager": ("admin", plane.secret("WATCH_PASSWORD")),
    }
    asked = {
        "airflow": ("/api/v2/connections", 401),
        "workers": ("/api/v2/connections", 403),
        "mlflow": ("/api/2.0/mlflow/experiments/get?experiment_id=0", 401),
        "prometheus": ("/api/v1/targets", 401),
        "alertmanager": ("/api/v2/status", 401),
    }
    for door, (path, refused) in asked.items():
        with plane.http(door) as client:
            assert (said := client.get(path, auth=None).status_code) == refused, (door, said)
            assert client.get(path, auth=None, headers={"Host": "rebound.example"}).status_code == 421, door
            assert client.get(path, auth=None, headers={"Origin": "https://evil.example"}).status_code == 403, door
            if door in logins:
                assert client.get(path, auth=("admin", "wrong")).status_code == 401, door
                client.get(path, auth=logins[door]).raise_for_status()
    with plane.http("airflow") as client:
        body = {"username": "admin", "password": "wrong"}
        assert client.post("/auth/token", json=body).status_code == 401
    with plane.http("grafana") as client:
        client.get("/api/health").raise_for_status()
    assert _store(plane, plane.secret("STORE_SECRET_KEY")) == 200
    assert _store(plane, "not-the-secret") == 403
    try:
        httpx.get(f"https://127.0.0.1:{PORTS['mlflow']}/health", verify=ssl.create_default_context(), trust_env=False)
        raise AssertionError("a certificate of an authority that nobody knows was believed")
    except httpx.ConnectError:
        pass
    return f"{len(asked) + 1} doors refuse whom they should, and let in who has a login"


def _store(plane: Plane, secret: str) -> int:
    """What the store answers to MLflow's access key with this secret."""
    authority = plane.folder / "authority.pem"
    authority.write_bytes(base64.b64decode(plane.secret("TLS_AUTHORITY")))
    client = boto3.client(
        "s3", endpoint_url=f"https://127.0.0.1:{PORTS['store']}", verify=str(authority), region_name="us-east-1",
        aws_access_key_id=plane.secret("STORE_ACCESS_KEY"), aws_secret_access_key=secret,
    )  # fmt: skip
    try:
        return client.head_bucket(Bucket="artifacts")["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]
