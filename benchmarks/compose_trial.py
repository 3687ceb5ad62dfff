"""Does the control plane in containers stand, and does it come back?  `make trial`, as root on Linux

    python benchmarks/compose_trial.py [--compose "docker-compose"] [--folder F] [--earlier F] [--keep]

It needs an engine (`dockerd`) and Compose; images that cannot be pulled are made from Debian's packages
(benchmarks/stand_ins.py). It starts docker-compose.yaml in a clone of HEAD, looks at what it promises, trains and
registers a champion by a worker outside, serves it, backs up, destroys the volumes, restores, serves again, and
upgrades. Every step raises where its fact is none.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import stand_ins
from compose_bounds import doors_ask, services_are_bound
from compose_plane import ONCE, PORTS, PROJECT, Plane, Worker, end
from record import save

CONF = {"preset": "toy"}
DAG, RUN = "optimize_diffusion", "trial"
CHAMPION = "digits-sampler@champion"
SERVER = 8097
DRAWN = {"class": "three", "n": 4, "seed": 7}
ALERT = {"alertname": "Trial", "redo": "tune", "metric": "frechet_distance", "severity": "warning"}


def refuses_bad_secrets(plane: Plane) -> str:
    """A missing secret is refused by Compose, a well-known one by check-secrets, and nothing else starts."""
    good = plane.secret("POSTGRES_PASSWORD")
    plane.set_secret("POSTGRES_PASSWORD", "")
    missing = plane.compose("up", "-d", check=False)
    assert missing.returncode and "docs/control_plane.md" in missing.stderr, missing.stderr
    assert not plane.containers()
    plane.set_secret("POSTGRES_PASSWORD", "changeme-changeme-7")
    weak = plane.compose("up", "-d", "--build", check=False)
    found = {name: plane.state(name) for name in plane.containers()}
    running = [name for name, state in found.items() if state not in ("created 0", "exited 1")]
    assert weak.returncode and found["check-secrets"] == "exited 1" and not running, (found, weak.stderr[-2000:])
    assert "everybody tries first" in plane.compose("logs", "check-secrets").stdout
    plane.end()
    plane.set_secret("POSTGRES_PASSWORD", good)
    return "a missing one by Compose, a well-known one by check-secrets"


def starts(plane: Plane) -> str:
    """Everything healthy."""
    plane.compose("up", "-d", "--build")
    plane.wait_healthy()
    return f"{len(plane.containers())} containers"


def ports_are_on_loopback(plane: Plane) -> str:
    """What the engine published, of all containers."""
    bound = [
        (name, port["HostIp"], int(port["HostPort"]))
        for name, one in plane.containers().items()
        for ports in (one["NetworkSettings"]["Ports"] or {}).values()
        for port in ports or []
    ]
    assert {port for _, _, port in bound} == set(PORTS.values()), bound
    assert {address for _, address, _ in bound} == {"127.0.0.1"}, bound
    return f"{len(bound)} ports, all on 127.0.0.1"


def images_are_light(plane: Plane) -> str:
    """No MLX and no torch in ours, no MLflow in Airflow's."""
    told = []
    for service, without in (("airflow-scheduler", "mlx torch mlflow"), ("mlflow", "mlx torch airflow")):
        image = plane.containers()[service]["Config"]["Image"]
        look = f"import importlib.util as u; print([n for n in '{without}'.split() if u.find_spec(n)])"
        found = plane.run("docker", "run", "--rm", "--entrypoint", "python", image, "-c", look).stdout.strip()
        assert found == "[]", f"{image} holds {found}"
        size = int(plane.run("docker", "image", "inspect", "-f", "{{.Size}}", image).stdout)
        told.append(f"{image} {size / 1e6:.0f} MB")
    return ", ".join(told)


def airflow_is_whole(plane: Plane) -> str:
    """Every DAG file is parsed in the container, without an error; the plugins answer."""
    api = plane.api
    api.wait_for_dag(DAG)
    errors = api._request("GET", "/api/v2/importErrors").json()["import_errors"]
    assert not errors, errors
    expected = {path.stem for path in (plane.server / "dags").glob("*.py")}
    dags = plane.wait("the DAGs", lambda: expected <= (found := _dags(api)) and found)
    health = plane.get("airflow", "/api/v2/monitor/health")
    assert all(
        health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")
    )
    with plane.http("airflow") as people:
        unknown = people.post("/alerts/alertmanager", json={})
    assert unknown.status_code == 401, unknown.text
    return ", ".join(sorted(dags))


def _dags(api: Any) -> set[str]:
    return {one["dag_id"] for one in api._request("GET", "/api/v2/dags").json()["dags"]}


def watch_is_connected(plane: Plane) -> str:
    """Prometheus knows its Alertmanager, its rules and targets; an alert reaches Airflow as a run."""
    managers = plane.wait(
        "Alertmanager", lambda: plane.get("prometheus", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    )
    rules = sum(len(group["rules"]) for group in plane.get("prometheus", "/api/v1/rules")["data"]["groups"])
    targets = plane.get("prometheus", "/api/v1/targets")["data"]["activeTargets"]
    assert len(managers) == 1 and rules and targets, (managers, rules, targets)
    api = plane.api
    api.pause(DAG, True)
    body = [{"labels": ALERT, "annotations": {"summary": "of the trial"}}]
    began = time.monotonic()
    with plane.http("alertmanager") as people:
        people.post("/api/v2/alerts", json=body).raise_for_status()
    run = plane.wait("the alert's run", lambda: next(iter(api.runs(DAG)), None), 120)
    waited = time.monotonic() - began
    assert run["dag_run_id"].startswith("alert__"), run
    api.stop_run(DAG, run["dag_run_id"])
    api.pause(DAG, False)
    return f"{rules} rules; an alert became {run['dag_run_id'][:16]} after {waited:.0f} s"


def killed_come_back(plane: Plane, worker: Worker, pictures: str) -> str:
    """kill -9 of every lasting container in turn, from outside: each is started again, and the champion is whole."""
    took = {}
    for service in sorted(set(plane.containers()) - set(ONCE)):
        took[service] = _killed(plane, service)
    plane.wait("Airflow", lambda: _well(plane))
    plane.wait_healthy()
    assert drawn(plane, worker, "after-kills") == pictures
    return ", ".join(f"{service} {seconds:.0f} s" for service, seconds in took.items())


def _killed(plane: Plane, service: str) -> float:
    """Seconds from the kill of a container's first process to its health."""
    before = plane.containers()[service]
    os.kill(before["State"]["Pid"], 9)
    began = time.monotonic()
    again = lambda: plane.containers()[service]["RestartCount"] > before["RestartCount"]  # noqa: E731
    plane.wait(f"{service} again", again)
    plane.wait(f"the health of {service}", lambda: plane.state(service) == "healthy")
    return time.monotonic() - began


def _well(plane: Plane) -> bool:
    try:
        health = plane.get("airflow", "/api/v2/monitor/health")
    except httpx.HTTPError:
        return False
    return all(
        health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")
    )


def a_worker_makes_a_champion(plane: Plane, worker: Worker) -> str:
    """The whole chain at toy size, by a worker outside; artifacts by hash in the store, a champion in MLflow."""
    doctor = worker.command("doctor")
    assert doctor.returncode == 0, doctor.stdout
    running = worker.start("worker", log="worker")
    try:
        began, api = time.monotonic(), plane.api
        for dag in (DAG, "deploy_champion"):
            api.pause(dag, False)
        api.trigger(DAG, RUN, CONF)
        state = plane.wait("the run's end", lambda: _ended(api), 1500)
        assert state == "success", [(t["task_id"], t["state"]) for t in api.tasks(DAG, RUN)]
        seconds = time.monotonic() - began
        server = worker.command("doctor", "--side", "server", "--env", str(plane.server / ".env"))
        assert server.returncode == 0, server.stdout
        plane.wait("deploy_champion", lambda: _all_ended(api, "deploy_champion"), 300)
    finally:
        end([running])
    return f"{len(api.tasks(DAG, RUN))} tasks in {seconds:.0f} s"


def an_earlier_champion(plane: Plane, earlier: Path) -> str:
    """What a trial before this one backed up, in the place of a training."""
    backup = max(path for path in (earlier / "backups").iterdir() if path.is_dir())
    plane.run("include/compose/restore.sh", str(backup), "--replace")
    plane.wait_healthy()
    return "restored from an earlier trial's backup"


def _ended(api: Any) -> str | None:
    state = api.run(DAG, RUN)["state"]
    return state if state in ("success", "failed") else None


def _all_ended(api: Any, dag: str) -> bool:
    runs = api.runs(dag)
    return bool(runs) and all(run["state"] in ("success", "failed") for run in runs)


def drawn(plane: Plane, worker: Worker, name: str) -> str:
    """SHA-256 of the PNGs that `mlx-tasks serve` draws from the registered champion, fetched into an empty folder."""
    store = plane.folder / f"models-{name}"
    serving = worker.start(
        "serve", "--model", CHAMPION, "--port", str(SERVER), "--store", str(store), log=f"serve-{name}"
    )
    url = f"http://127.0.0.1:{SERVER}"
    try:
        plane.wait("the model server", lambda: serving.poll() is not None or _ready(url), 240)
        answer = httpx.post(f"{url}/v1/images/generations", json=DRAWN, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        return hashlib.sha256("".join(one["b64_json"] for one in answer.json()["data"]).encode()).hexdigest()
    finally:
        end([serving])


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def history(plane: Plane) -> Any:
    """What Airflow remembers of the runs, and the text of one task's log."""
    api = plane.api
    keys = ("task_id", "map_index", "state", "try_number", "start_date", "end_date", "hostname")
    runs = {run["dag_run_id"]: (run["state"], run["start_date"], run["end_date"]) for run in api.runs(DAG)}
    tasks = [{key: task[key] for key in keys} for task in api.tasks(DAG, RUN)]
    log = api.task_log(DAG, RUN, "train", 1)
    assert len(log) > 200, f"no log of train: {log!r}"
    return runs, sorted(tasks, key=lambda task: (task["task_id"], task["map_index"])), log


def backs_up(plane: Plane) -> tuple[Path, str]:
    """One folder, whole, for its owner alone, with nothing secret in it; a part that changed is refused."""
    began = time.monotonic()
    plane.run("include/compose/backup.sh", str(plane.folder / "backups"))
    seconds = time.monotonic() - began
    (made,) = (path for path in (plane.folder / "backups").iterdir() if path.is_dir())
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    parts = {path.name: path.stat().st_size for path in made.iterdir() if path.is_file()}
    stored = [path for path in (made / "store").rglob("*") if path.is_file()]
    lines = [line.partition("=") for line in (plane.server / ".env").read_text().splitlines() if line[0] != "#"]
    secrets = [value for name, _, value in lines if name not in ("ADO_HOSTS", "REGISTRARS")]
    for path in (made / name for name in parts):
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), f"a secret in {path.name}"
    full = plane.run("include/compose/restore.sh", str(made), check=False)
    assert full.returncode == 1 and "--replace" in full.stderr, full.stderr
    damaged = shutil.copytree(made, plane.folder / "damaged")
    with (damaged / "mlflow.dump").open("r+b") as file:
        file.seek(2000)
        file.write(b"\x00\xff")
    refused = plane.run("include/compose/restore.sh", str(damaged), "--replace", check=False)
    assert refused.returncode == 1 and "damaged" in refused.stderr, refused.stderr
    assert _well(plane)  # a refusal stops nothing
    told = ", ".join(f"{name} {bytes_}" for name, bytes_ in sorted(parts.items()))
    return made, f"{seconds:.1f} s, {size} bytes: {len(stored)} objects {sum(p.stat().st_size for p in stored)}, {told}"


def comes_back(plane: Plane, worker: Worker, made: Path, pictures: str, remembered: Any) -> str:
    """Volumes destroyed, restored: the same history, the same images, and the run fetched by hash elsewhere."""
    plane.compose("down", "-v")
    assert not plane.volumes(), plane.volumes()
    began = time.monotonic()
    plane.run("include/compose/restore.sh", str(made))
    restored = time.monotonic() - began
    healthy = restored + plane.wait_healthy()
    assert history(plane) == remembered
    assert drawn(plane, worker, "restored") == pictures
    empty = Worker(plane, "empty")
    again = empty.command("reproduce", "digits-sampler/1")
    assert again.returncode == 0, again.stdout + again.stderr
    return (
        f"restored after {restored:.0f} s, healthy after {healthy:.0f} s; same history, same images, reproduced by hash"
    )


def replaces(plane: Plane, worker: Worker, made: Path, pictures: str, remembered: Any) -> str:
    """What came after the backup is gone where the backup is put in its place."""
    plane.api.trigger("monitor_quality", "after-the-backup", {})
    began = time.monotonic()
    plane.run("include/compose/restore.sh", str(made), "--replace")
    plane.wait_healthy()
    seconds = time.monotonic() - began
    assert not plane.api.runs("monitor_quality") and history(plane) == remembered
    assert drawn(plane, worker, "replaced") == pictures
    return f"{seconds:.0f} s"


def upgrades(plane: Plane, worker: Worker, pictures: str, remembered: Any) -> str:
    """Images with another label; the services that migrate run again; volumes and what they hold stay."""
    before, volumes = plane.containers(), plane.volumes()
    for path in (plane.server / "include/compose").glob("*.Dockerfile"):
        path.write_text(path.read_text() + 'LABEL version="the next"\n')
    began = time.monotonic()
    plane.compose("build")
    plane.compose("stop", *(name for name in before if name.startswith("airflow-")), "mlflow")
    plane.compose("up", "-d")
    plane.wait_healthy()
    seconds, after = time.monotonic() - began, plane.containers()
    ours = [name for name, one in after.items() if one["Config"]["Image"].startswith("adaptive-diffusion-optimizer/")]
    for name in ours:
        assert after[name]["Config"]["Labels"]["version"] == "the next", name
    for name in ("airflow-init", "mlflow-init"):
        assert after[name]["State"]["FinishedAt"] > before[name]["State"]["FinishedAt"]
    assert after["postgres"]["Id"] == before["postgres"]["Id"] and plane.volumes() == volumes
    assert history(plane) == remembered and drawn(plane, worker, "upgraded") == pictures
    return f"{seconds:.0f} s, {len(ours)} containers new, PostgreSQL's the same"


def compose_here() -> list[str]:
    """Compose v2 where the engine's client has it, else v1."""
    found = subprocess.run(["docker", "compose", "version", "--short"], capture_output=True, check=False)
    return ["docker", "compose"] if found.returncode == 0 else ["docker-compose"]


def main() -> None:
    """Every step in turn, with its seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compose", help='"docker compose" or "docker-compose", the old one (default: what is here)')
    parser.add_argument("--folder", type=Path, help="an empty folder to work in (default: a temporary one)")
    parser.add_argument("--earlier", type=Path, help="--folder of a trial before: take its champion, train none")
    parser.add_argument("--keep", action="store_true", help="leave containers and volumes as they are at the end")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="compose-trial-"))
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []

    def step(name: str, look: Any, *arguments: Any) -> Any:
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        found = look(*arguments)
        told = found[1] if isinstance(found, tuple) else found
        rows.append({"step": name, "seconds": round(time.monotonic() - began, 1), "told": told})
        print(f"  {rows[-1]['seconds']:g} s: {told}", flush=True)
        return found[0] if isinstance(found, tuple) else found

    plane = Plane(folder, given.compose.split() if given.compose else compose_here())
    version = plane.run(*plane.compose_words, "version", "--short", cwd=folder).stdout.strip()
    made = stand_ins.make(lambda told: print(told, flush=True))
    try:
        plane.prepare(given.earlier)
        step("bad secrets are refused", refuses_bad_secrets, plane)
        step("everything starts", starts, plane)
        step("ports", ports_are_on_loopback, plane)
        step("limits", services_are_bound, plane)
        step("doors", doors_ask, plane)
        step("images", images_are_light, plane)
        step("Airflow", airflow_is_whole, plane)
        step("Prometheus and Alertmanager", watch_is_connected, plane)
        worker = Worker(plane, "worker")
        if given.earlier:
            step("a champion", an_earlier_champion, plane, given.earlier)
        else:
            step("a champion", a_worker_makes_a_champion, plane, worker)
        pictures = step("served", drawn, plane, worker, "first")
        step("every container killed", killed_come_back, plane, worker, pictures)
        remembered = history(plane)
        backup = step("backup", backs_up, plane)
        step("volumes destroyed, restored", comes_back, plane, worker, backup, pictures, remembered)
        step("restored over what is there", replaces, plane, worker, backup, pictures, remembered)
        step("upgrade", upgrades, plane, worker, pictures, remembered)
    finally:
        if not given.keep:
            plane.end()
    engine = plane.run("docker", "version", "-f", "{{.Server.Version}}", cwd=folder).stdout.strip()
    config = {"compose": version, "engine": engine, "project": PROJECT, "stand_ins": made or stand_ins.wanted()}
    name = "compose_trial" if version.startswith("1.") else "compose_trial_v2"
    save(name, question="Does the control plane stand, and come back from a backup?", config=config, rows=rows)
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
