"""What the doctor looks at: each check names what is wrong and how to mend it, and changes nothing anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import httpx

from mlx_tasks.dag_settings import ACCELERATOR
from mlx_tasks.errors import StageError
from mlx_tasks.fleet.settings import QUEUES, WorkerSettings
from mlx_tasks.fleet.tokens import sign
from mlx_tasks.trust import authorities
from mlx_tasks.workspace import git

State = Literal["ok", "warning", "wrong"]

MOST_SKEW_S = 8.0
"""Tokens are signed for ten seconds (Airflow's jwt_leeway); a clock further off makes every request a 403."""
LEAST_DISK_GB = 5.0
LEAST_HEARTBEATS = 24
"""Missed heartbeats (five seconds each) that a task must live through: the API server may be away for two minutes."""
TIMEOUT_S = 10.0
POOLS = (ACCELERATOR["pool"], "default_pool")
"""That the chain's tasks take their slots from."""
NEVER = "0.0.0"
"""A version that no server takes: it answers with its own."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at, in a few words.
        state: ok, warning (works, not for long or not well) or wrong.
        told: what is the case.
        fix: what to do, empty where nothing is.
    """

    check: str
    state: State
    told: str
    fix: str = ""


Check = Callable[[WorkerSettings], Finding]


def api_server(settings: WorkerSettings) -> Finding:
    """The API server answers."""
    name = "control plane"
    try:
        health = _get(f"{settings.control_plane}/api/v2/monitor/health").json()
    except (httpx.HTTPError, ValueError) as error:
        fix = "start it, open the tunnel to it, or mend ADO_CONTROL_PLANE"
        return Finding(name, "wrong", f"{settings.control_plane} does not answer as Airflow: {_short(error)}", fix)
    sick = [part for part, told in health.items() if isinstance(told, dict) and told.get("status") == "unhealthy"]
    if sick:
        return Finding(name, "warning", f"not well there: {', '.join(sick)}", "see their logs on the server")
    return Finding(name, "ok", settings.control_plane)


def airflow_version(settings: WorkerSettings) -> Finding:
    """Airflow is the same here and there."""
    here = _installed("apache-airflow")
    there = _get(f"{settings.control_plane}/api/v2/version").json()["version"]
    return _same("Airflow's version", here, there, "make setup at the server's commit, or upgrade the server")


def clock(settings: WorkerSettings) -> Finding:
    """This clock and the server's agree."""
    before = time.time()
    date = _get(f"{settings.control_plane}/api/v2/version").headers.get("date")
    if date is None:
        return Finding("clock", "warning", "the server sends no date", "a proxy between drops it: let it through")
    middle = (before + time.time()) / 2
    skew = middle - parsedate_to_datetime(date).timestamp() - 0.5  # the header has whole seconds
    if abs(skew) > MOST_SKEW_S:
        where = "ahead of" if skew > 0 else "behind"
        fix = "set both by NTP (macOS: sudo sntp -sS time.apple.com; Linux: timedatectl set-ntp true)"
        return Finding("clock", "wrong", f"{abs(skew):.0f} s {where} the server's", fix)
    return Finding("clock", "ok", f"within {max(1.0, abs(skew)):.0f} s of the server's")


def key(settings: WorkerSettings) -> Finding:
    """The server takes what is signed with this worker's key; and the provider for workers is the same here and there.

    A registration under a version that no server takes is refused with the server's own version, and changes nothing.
    """
    name = "key"
    method = f"worker/doctor-{uuid.uuid4().hex[:8]}"
    told = {"airflow_version": _installed("apache-airflow"), "edge_provider_version": NEVER}
    body = {"state": "starting", "jobs_active": 0, "queues": list(settings.queues), "sysinfo": told}
    headers = {"Authorization": sign(settings.key, method)}
    answer = httpx.post(
        f"{settings.edge_api}/{method}".replace("/rpcapi/", "/"),
        json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False, verify=authorities(),
    )  # fmt: skip
    if answer.status_code in (404, 405):
        fix = "set AIRFLOW__EDGE__API_ENABLED=True on the server"
        return Finding(name, "wrong", "the server has no door for workers", fix)
    if answer.status_code == 403:
        fix = (
            f"on the server `make secrets WORKER={settings.name}` and `docker compose up -d`, "
            f"its worker-{settings.name}.env here as worker.env; where that is done, mend the clock"
        )
        return Finding(name, "wrong", "the server refuses what is signed with this worker's key", fix)
    there = re.search(r"core runs on ([0-9][\w.]*?)\.? ", f"{answer.text} ")
    if answer.status_code != 400 or there is None:
        return Finding(name, "warning", f"the server answers {answer.status_code}: {answer.text[:120]}", "")
    same = _same("", _installed("apache-airflow-providers-edge3"), there[1], "make setup at the server's commit")
    if same.state != "ok":
        return Finding("edge provider's version", same.state, same.told, same.fix)
    return Finding(name, "ok", f"taken; edge provider {there[1]} on both sides")


def mlflow(settings: WorkerSettings) -> Finding:
    """The tracking server lets this worker in, and has the version that is installed here."""
    fix = "start it, open the tunnel to it, or mend MLFLOW_TRACKING_URI"
    login = (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    try:
        answer = _get(f"{settings.mlflow}/version", auth=login if login[0] else None)
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            return Finding("MLflow", "wrong", f"{settings.mlflow} does not answer rightly: {_short(error)}", fix)
        fix = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as the server's worker-NAME.env has them"
        return Finding("MLflow", "wrong", f"{settings.mlflow} does not let {login[0] or 'nobody'} in", fix)
    except httpx.HTTPError as error:
        return Finding("MLflow", "wrong", f"{settings.mlflow} does not answer: {_short(error)}", fix)
    found = _same("MLflow", _installed("mlflow"), answer.text.strip(), "make setup at the server's commit")
    return Finding("MLflow", "warning", found.told, found.fix) if found.state == "wrong" else found


def store(settings: WorkerSettings) -> Finding:
    """The DVC remote can be written to and read from."""
    name, places = "artifact store", settings.places
    if "://" not in places.dvc_remote:
        fix = "on several machines name a store that all of them reach: ADO_DVC_REMOTE=s3://..."
        return Finding(name, "warning", f"{places.dvc_remote} is a folder of this machine", fix)
    from mlx_tasks.workspace.store import probe

    try:
        probe(places)
    except StageError as error:
        return Finding(
            name, "wrong", str(error), "mend ADO_DVC_REMOTE, ADO_DVC_ENDPOINT, AWS_ACCESS_KEY_ID and its key"
        )
    return Finding(name, "ok", f"{places.dvc_remote}: written, read, removed")


def repository(settings: WorkerSettings) -> Finding:
    """The checkout's git remote takes and gives branches."""
    name, places = "git remote", settings.places
    if places.git_remote is None:
        fix = "on several machines set ADO_GIT_REMOTE, origin for example"
        return Finding(name, "warning", "runs' branches stay on this machine", fix)
    try:
        git.exchange(places.repository, "ls-remote", places.git_remote)
    except StageError as error:
        fix = f"git -C {places.repository} remote -v, and the credentials for it"
        return Finding(name, "wrong", " ".join(str(error).split())[:300], fix)
    return Finding(name, "ok", f"{git.without_passwords(places.git_remote)} answers")


def queues(settings: WorkerSettings) -> Finding:
    """It takes every queue that the chain uses."""
    missing = [queue for queue in QUEUES if queue not in settings.queues]
    if missing:
        fix = f"ADO_QUEUES={','.join(QUEUES)}, unless another worker takes them"
        return Finding("queues", "warning", f"does not take {', '.join(missing)}", fix)
    return Finding("queues", "ok", ", ".join(settings.queues))


def interpreter(settings: WorkerSettings) -> Finding:
    """Tasks start in fresh interpreters, whatever this shell says."""
    return overrides(settings.environment())


def overrides(environment: Mapping[str, str]) -> Finding:
    """An environment's limits: fresh interpreters, and heartbeats that a restart of the server does not exhaust."""
    name = "task settings"
    if environment.get("AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER", "").lower() not in ("true", "1", "t"):
        fix = "AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER=True, as `mlx-tasks worker` sets it"
        return Finding(name, "wrong", "tasks would be forks, and MLX survives no fork", fix)
    limit = environment.get("AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS", "3")
    if not limit.isdigit() or int(limit) < LEAST_HEARTBEATS:
        fix = "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS=120, as `mlx-tasks worker` sets it"
        return Finding(name, "wrong", f"a task dies after {limit} missed heartbeats", fix)
    return Finding(name, "ok", f"fresh interpreters; {limit} heartbeats may be missed")


def disk(settings: WorkerSettings) -> Finding:
    """There is room for a run."""
    folder = settings.places.state
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < LEAST_DISK_GB:
        fix = f"remove folders of old runs under {settings.places.workspaces} or move ADO_STATE to a larger disk"
        return Finding("disk", "wrong", f"{free:.1f} GB free at {folder}, {LEAST_DISK_GB:g} wanted", fix)
    return Finding("disk", "ok", f"{free:.0f} GB free")


def accelerator(settings: WorkerSettings) -> Finding:
    """MLX computes on Metal, or with a BLAS that deserves the name; asked of a process of its own, as tasks are."""
    code = (
        "from mlx_tasks import hardware; h = hardware.prepare(); import mlx.core as mx; "
        "print(h.kind, mx.metal.is_available(), hardware.blas() or '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        cwd=settings.places.repository,
    )  # fmt: skip
    if done.returncode:
        return Finding("MLX", "wrong", f"does not import: {done.stderr.strip()[-160:]}", "make setup")
    kind, metal, *blas = done.stdout.split()
    if kind == "metal" and metal != "True":
        fix = "log in on the Mac itself or start the worker by launchd as that user: Metal needs its session"
        return Finding("MLX", "wrong", "no Metal device in this session", fix)
    if kind == "cpu" and not blas:
        return Finding("MLX", "warning", "no fast BLAS: 30 times slower", "make setup (mkl), or libopenblas0-pthread")
    return Finding("MLX", "ok", {"metal": "Metal", "cuda": "CUDA"}.get(kind) or f"CPU with {blas[0]}")


WORKER: tuple[Check, ...] = (
    api_server, airflow_version, clock, key, mlflow, store, repository, queues, interpreter, disk, accelerator,
)  # fmt: skip
"""In the order in which one failure explains the next."""


def fleet(url: str, password: str, user: str = "admin") -> list[Finding]:
    """The server's side: its parts are well, and somebody takes every queue."""
    findings = []
    try:
        health = _get(f"{url}/api/v2/monitor/health").json()
        token = httpx.post(
            f"{url}/auth/token", json={"username": user, "password": password}, timeout=TIMEOUT_S, trust_env=False,
            verify=authorities(),
        )  # fmt: skip
        token.raise_for_status()
        headers = {"Authorization": f"Bearer {token.json()['access_token']}"}
        asked = {"headers": headers, "timeout": TIMEOUT_S, "trust_env": False, "verify": authorities()}
        told = httpx.get(f"{url}/edge_worker/ui/worker", **asked)
        told.raise_for_status()
        slots: dict[str, int] = {}
        for name in POOLS:
            pool = httpx.get(f"{url}/api/v2/pools/{name}", **asked)
            if pool.status_code != 404:
                slots[name] = pool.raise_for_status().json()["slots"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        fix = "docker-compose ps and logs; the password is AIRFLOW_ADMIN_PASSWORD"
        return [Finding("API server", "wrong", f"{url}: {_short(error)}", fix)]
    for part, its in health.items():
        status = its.get("status") if isinstance(its, dict) else its
        if status not in (None, "healthy"):
            findings.append(
                Finding(part, "wrong", f"{status}", f"docker-compose logs airflow-{part.replace('_', '-')}")
            )
    findings.append(Finding("API server", "ok", url))
    return findings + pools(slots, url) + workers(told.json()["workers"])


def pools(slots: Mapping[str, int], url: str) -> list[Finding]:
    """A pool without slots lets no task start."""
    findings = []
    for name in POOLS:
        if slots.get(name, 0) == 0:
            what = "has 0 slots" if name in slots else "is not there"
            findings.append(Finding("pools", "wrong", f"{name} {what}: its tasks wait", f"give it 1 at {url}/pools"))
    return findings or [Finding("pools", "ok", f"{ACCELERATOR['pool']}: {slots[ACCELERATOR['pool']]} slots")]


def workers(told: list[dict[str, Any]]) -> list[Finding]:
    """What the fleet looks like from the server."""
    alive = [one for one in told if one["state"] not in ("offline", "unknown", "offline maintenance")]
    if not alive:
        return [Finding("workers", "wrong", "none is there: tasks wait", "mlx-tasks worker on a Mac")]
    findings = [Finding("workers", "ok", ", ".join(f"{one['worker_name']} ({one['state']})" for one in alive))]
    taken = {queue for one in alive for queue in one["queues"] or QUEUES}
    if missing := [queue for queue in QUEUES if queue not in taken]:
        fix = "ADO_QUEUES=mlx,default on a worker"
        findings.append(Finding("queues", "wrong", f"nobody takes {', '.join(missing)}: its tasks wait", fix))
    else:
        findings.append(Finding("queues", "ok", ", ".join(QUEUES)))
    for one in alive:
        about = one.get("sysinfo") or {}
        if int(about.get("concurrency", 1)) > 1:
            fix = "start it by `mlx-tasks worker`"
            findings.append(Finding(one["worker_name"], "wrong", f"takes {about['concurrency']} tasks at once", fix))
        for package, key in (
            ("apache-airflow", "airflow_version"),
            ("apache-airflow-providers-edge3", "edge_provider_version"),
        ):
            here = _installed(package)
            if here and key in about and about[key] != here:
                told_of = f"has {package} {about[key]}, the server {here}"
                findings.append(Finding(one["worker_name"], "warning", told_of, "make setup there"))
    return findings


def _same(name: str, here: str | None, there: str, fix: str) -> Finding:
    if here != there:
        return Finding(name, "wrong", f"{here or 'none'} here, {there} on the server", fix)
    return Finding(name, "ok", there)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _get(url: str, auth: tuple[str, str] | None = None) -> httpx.Response:
    answer = httpx.get(url, auth=auth, timeout=TIMEOUT_S, trust_env=False, verify=authorities())
    answer.raise_for_status()
    return answer


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
