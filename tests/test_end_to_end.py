"""The real chain at toy size under a real Airflow, MLflow and DVC: what `make demo` does, and what may befall it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from ports import free_port

from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.files import read_json, sha256_file
from mlx_tasks.stack.api import AirflowApi
from mlx_tasks.stack.demo import DAG_ID
from mlx_tasks.stack.layout import Layout
from mlx_tasks.workspace.paths import run_slug, workspace_path

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

RUN_TIMEOUT_S = 900
UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Chain:
    """A clone of this checkout with a stack of its own, and the first run of `mlx-tasks demo` there."""

    root: Path
    layout: Layout
    environment: dict[str, str]
    run_id: str
    output: str
    exit_code: int
    second_demo: subprocess.CompletedProcess
    head_before: str

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.layout)

    def workspace(self, run_id: str | None = None) -> Path:
        return workspace_path(self.layout.state, run_id or self.run_id)

    def wait(self, run_id: str) -> str:
        """The run's final state."""
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            state = self.api.run(DAG_ID, run_id)["state"]
            if state in ("success", "failed"):
                return state
            time.sleep(1)
        raise TimeoutError(f"{run_id} still runs")

    def statuses(self, run_id: str) -> dict[str, str]:
        """Target -> ran or cached, as the nodes handed it on."""
        results = [self.api.xcom(DAG_ID, run_id, task, "result") for task in self.api.tasks(DAG_ID, run_id)]
        return {result["target"]: result["status"] for result in results if result and "target" in result}


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def clone_with_edits(repository: Path, target: Path) -> None:
    """Clone HEAD and commit the working tree's own edits on top, so that what is tested is what is here."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(repository), str(target)], check=True)
    files = git(repository, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        source, copy = repository / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
            copy.chmod(source.stat().st_mode)
        elif copy.exists():
            copy.unlink()
    git(target, "add", "-A")
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.invalid")
    git(target, *identity, "commit", "-q", "--allow-empty", "-m", "edits under test")


def start_demo(chain_root: Path, environment: dict[str, str], *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_tasks", "demo", "--preset", "toy", "--plain", *options],
        cwd=chain_root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("chain")
    root = folder / "checkout"
    clone_with_edits(repository, root)
    environment = {
        **os.environ,
        "ADO_STATE": str(folder / "state"),
        "ADO_AIRFLOW_PORT": str(free_port()),
        "ADO_MLFLOW_PORT": str(free_port()),
        "ADO_SERVER_PORT": str(free_port()),
        "ADO_RETRY_DELAY_S": "1",
        "MLX_TASKS_LOCKS": str(folder / "locks"),
        "PYTHONPATH": str(root),
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("ADO_STATE", "ADO_AIRFLOW_PORT", "ADO_MLFLOW_PORT", "ADO_SERVER_PORT"):
        os.environ[name] = environment[name]
    (folder / "locks").mkdir()
    layout = Layout.of(root)
    head = git(root, "rev-parse", "HEAD")
    try:
        process = start_demo(root, environment)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "is under way" in line:
                break
        second = subprocess.run(
            [sys.executable, "-m", "mlx_tasks", "demo", "--preset", "toy"],
            cwd=root, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        rest, _ = process.communicate(timeout=RUN_TIMEOUT_S)
        run_id = read_json(layout.state / "latest_run.json")["run_id"]
        yield Chain(root, layout, environment, run_id, "".join(lines) + rest, process.returncode, second, head)
    finally:
        subprocess.run([sys.executable, "-m", "mlx_tasks", "down"], cwd=root, env=environment, check=False)
        for name in ("ADO_STATE", "ADO_AIRFLOW_PORT", "ADO_MLFLOW_PORT", "ADO_SERVER_PORT"):
            del os.environ[name]


def test_the_demo_ends_green_and_tells_each_node_and_where_to_look(chain):
    assert chain.exit_code == 0, chain.output[-6000:]
    positions = [
        chain.output.index(f"✓ {node}")
        for node in ("validate", "train", "distill", "search", "tune", "evaluate", "register")
    ]
    assert positions == sorted(positions)
    for place in (chain.layout.airflow_url, chain.layout.mlflow_url, "report.html", "make down"):
        assert place in chain.output


def test_a_second_demo_is_told_who_is_at_work(chain):
    assert chain.second_demo.returncode == ExitCode.BUSY
    assert "a demo (pid" in chain.second_demo.stderr and "make down" in chain.second_demo.stderr


def test_every_task_succeeded_at_the_first_try(chain):
    tasks = chain.api.tasks(DAG_ID, chain.run_id)
    assert {t["state"] for t in tasks} == {"success"} and {t["try_number"] for t in tasks} == {1}
    trials = [t for t in tasks if t["task_id"] == "search.trial_0"]
    plan = read_json(chain.workspace() / "work" / "search" / "plan_0" / "trials.json")
    assert sorted(t["map_index"] for t in trials) == list(range(len(plan["slots"])))
    shares = {t["rendered_map_index"]: t["map_index"] for t in tasks if t["task_id"] == "evaluate.score"}
    assert shares == {"slot 0": 0, "slot 1": 1}
    scores = read_json(chain.workspace() / "work" / "scores" / "scores.json")
    made = [one["rows"] for one in scores["setup"]["scored_by"]]
    assert len(made) == 2 and all(made) and sum(made) == len(scores["rows"])


def test_progress_of_a_stage_is_in_its_airflow_log(chain):
    log = chain.api.task_log(DAG_ID, chain.run_id, "train", 1)
    assert "steps" in log and "loss=" in log


def test_the_report_and_its_json_tell_the_same_verdict(chain):
    work = chain.workspace() / "work"
    verdict = read_json(work / "registered" / "verdict.json")
    report = read_json(work / "report" / "report.json")
    assert report["verdict"]["passed"] == verdict["passed"]
    (rule,) = verdict["rules"]  # half of what noise scores: what is not learned at all would not pass
    assert rule["metric"] == "frechet_distance" and rule["passed"] and 0 < rule["value"] < rule["limit"] < 10
    html = (work / "report" / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and "<script src" not in html


def test_the_winner_is_registered_with_its_lineage_and_opens_in_diffusers(chain):
    from diffusers import UNet2DModel

    answer = httpx.get(
        f"{chain.layout.mlflow_url}/api/2.0/mlflow/registered-models/alias",
        params={"name": "digits-sampler", "alias": "champion"},
        trust_env=False,
    )
    version = answer.raise_for_status().json()["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    commit = next(value for key, value in tags.items() if "commit" in key)
    assert "dvc.lock" in git(chain.root, "ls-tree", "--name-only", commit)
    bundle = chain.workspace() / "work" / "registered" / "bundle"
    assert UNet2DModel.from_pretrained(bundle, subfolder="unet").config.sample_size == 16
    lineage = read_json(bundle / "lineage.json")
    summary = read_json(chain.workspace() / "work" / "dataset" / "summary.json")
    assert lineage["dataset"]["fingerprint"] == summary["fingerprint"]
    assert lineage["params"]["train"]["steps"] == 40


def test_the_run_is_a_branch_and_the_users_checkout_is_untouched(chain):
    assert git(chain.root, "rev-parse", "HEAD") == chain.head_before
    assert git(chain.root, "status", "--porcelain") == ""
    branch = f"runs/{run_slug(chain.run_id)}"
    lock = git(chain.root, "show", f"{branch}:dvc.lock")
    assert "work/registered" in lock and "work/report" in lock


def test_a_bad_value_is_refused_before_anything_runs(chain):
    for conf, word in (
        ({"preset": "toy", "ppo_steps": 1}, "ppo_steps"),
        ({"preset": "nothing"}, "preset"),
        ({"preset": "toy", "resolutions": "16"}, "resolutions"),
    ):
        with pytest.raises(DataError, match=word):
            chain.api.trigger(DAG_ID, f"bad-{word}", conf)


def test_an_unknown_key_fails_in_the_first_task_and_is_not_tried_again(chain):
    chain.api.trigger(DAG_ID, "unknown", {"preset": "toy", "overrides": {"train.stepps": 3}})
    assert chain.wait("unknown") == "failed"
    tasks = {t["task_id"]: t for t in chain.api.tasks(DAG_ID, "unknown")}
    assert tasks["open_run"]["state"] == "failed" and tasks["open_run"]["try_number"] == 1
    assert tasks["validate"]["state"] == "upstream_failed"
    assert "stepps" in chain.api.task_log(DAG_ID, "unknown", "open_run", 1)


def stage_process(workspace: Path, stage: str) -> psutil.Process | None:
    """The process of a stage that runs in a workspace: `mlx-tasks STAGE`, not the shell or the node around it."""
    for process in psutil.process_iter():
        try:
            if process.cwd() != str(workspace):
                continue
            words = process.cmdline()
        except psutil.Error:
            continue
        if words and "python" in Path(words[0]).name and words[-1] == stage and any("mlx" in w for w in words[1:-1]):
            return process
    return None


def train_step(workspace: Path) -> int:
    try:
        return int(read_json(workspace / ".run" / "progress" / "train.json")["done"])
    except (OSError, ValueError, KeyError):
        return 0


def test_two_runs_at_once_and_a_kill_9_of_training_change_nothing(chain):
    """Both train what the first run trained; one is killed in mid-training and goes on from its checkpoint.

    `train.checkpoint_every` makes them other stages to DVC and the same training to the weights. The other's gate
    cannot be passed.
    """
    killed, calm = "killed", "calm"
    impossible = [{"metric": "frechet_distance", "direction": "below", "limit": -1.0}]
    for run_id, every, gate in ((killed, 3, {}), (calm, 4, {"gate_limits": impossible})):
        chain.api.trigger(DAG_ID, run_id, {"preset": "toy", "overrides": {"train.checkpoint_every": every}} | gate)
    deadline = time.monotonic() + 300
    while not (checkpoints := list((chain.workspace(killed) / ".checkpoints" / "train").glob("*[0-9]"))):
        assert time.monotonic() < deadline, "training has written no checkpoint"
        time.sleep(0.05)
    process = stage_process(chain.workspace(killed), "train")
    assert process is not None and checkpoints
    process.kill()
    assert {run_id: chain.wait(run_id) for run_id in (killed, calm)} == {killed: "success", calm: "success"}
    tries = {t["task_id"]: t["try_number"] for t in chain.api.tasks(DAG_ID, killed)}
    assert tries["train"] == 2
    log = chain.api.task_log(DAG_ID, killed, "train", 2)
    assert "resum" in log.lower() or "going on from" in log.lower() or "goes on" in log.lower(), log[-3000:]
    weights = {
        run: sha256_file(chain.workspace(run) / "work" / "teacher" / UNET) for run in (chain.run_id, killed, calm)
    }
    assert len(set(weights.values())) == 1, weights


def test_an_impossible_gate_ends_green_with_reasons_and_what_did_not_change_is_cached(chain):
    announced = {t["task_id"]: t["state"] for t in chain.api.tasks(DAG_ID, "calm")}["announce"]
    verdict = read_json(chain.workspace("calm") / "work" / "registered" / "verdict.json")
    assert announced == "skipped" and verdict["passed"] is False
    assert any("frechet_distance" in reason and "-1" in reason for reason in verdict["reasons"])
    statuses = chain.statuses("calm")
    assert {t for t, s in statuses.items() if s == "ran"} == {"train", "register", "report"}, statuses


def test_sample_grids_and_step_metrics_are_in_mlflow(chain):
    run = read_json(chain.workspace() / ".run" / "stages" / "train.json")["mlflow_run_id"]
    get = lambda path, **params: httpx.get(  # noqa: E731
        f"{chain.layout.mlflow_url}/api/2.0/mlflow/{path}", params=params, trust_env=False
    ).raise_for_status().json()  # fmt: skip
    loss = get("metrics/get-history", run_id=run, metric_key="train/loss")["metrics"]
    steps = [int(m["step"]) for m in loss]
    total = read_json(chain.workspace() / "work" / "metrics" / "train.json")
    assert len(steps) == len(set(steps)) >= 10 and all(np.isfinite(float(m["value"])) for m in loss)
    names = {m["key"] for m in get("runs/get", run_id=run)["run"]["data"]["metrics"]}
    assert {"train/loss", "train/learning_rate", "train/images_per_second", "train/peak_memory_mb"} <= names, total
    files = json.dumps(get("artifacts/list", run_id=run))
    assert "image" in files or "sample" in files


def test_a_version_comes_back_by_its_hashes_on_a_machine_that_has_nothing_of_it(chain, tmp_path):
    """`mlx-tasks reproduce`: code and params from its commit, bytes from the store; a part that is gone is named."""
    environment = chain.environment | {
        "ADO_STATE": str(tmp_path / "state"),
        "ADO_REPOSITORY": str(chain.root),
        "ADO_DVC_REMOTE": str(chain.layout.state / "dvc-remote"),
        "MLFLOW_TRACKING_URI": chain.layout.mlflow_url,
    }

    def reproduce(*options):
        return subprocess.run(
            [sys.executable, "-m", "mlx_tasks", "reproduce", "digits-sampler/1", *options],
            cwd=chain.root, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    done = reproduce()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bundle: the same bytes as models:/digits-sampler/1" in done.stdout
    folder = tmp_path / "state" / "reproduced" / "digits-sampler-1"
    made = chain.workspace() / "work" / "registered" / "bundle" / UNET
    assert sha256_file(folder / "work" / "registered" / "bundle" / UNET) == sha256_file(made)
    assert reproduce().returncode == ExitCode.BAD_INPUT  # its folder is not empty
    remote = tmp_path / "emptied"
    environment["ADO_DVC_REMOTE"], environment["ADO_STATE"] = str(remote), str(tmp_path / "other")
    lost = reproduce()
    assert lost.returncode == ExitCode.UNAVAILABLE and "the store" in lost.stderr and "--recompute" in lost.stderr


def test_a_champion_that_slips_is_noticed_and_mended_and_no_request_is_lost(chain):
    """`make loop`: a server under load, damaged; monitor, alert, chain, deployment and swap, all of them real."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_tasks", "loop", "--damage", "noise:0.5"],
        cwd=chain.root, env=chain.environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (chain.layout.state / "loop").glob("*/timeline.json")
    events = {event["event"]: event for event in read_json(path)}
    order = ["serves", "sound", "damaged", "alert", "run", "made", "champion", "swapped", "verified", "mended", "end"]
    assert list(events) == order
    assert "no alert" in events["sound"]["text"] and "no alert" not in events["alert"]["text"]
    # Which of the monitor's tests see it first depends on the toy's winner: drift, brightness, sharpness, ...
    parts = events["alert"]["text"].removeprefix("the monitor: ").split("; ")
    seen = [part.partition(": ")[2].partition(" (p = ")[0] for part in parts]
    assert events["end"]["failed"] == 0 and events["end"]["served"] > 300
    stage = events["alert"]["suggestion"]
    before = {"tune": {"train", "distill", "search_select"}, "distill": {"train"}, "train": {"validate"}}[stage]
    assert before <= set(events["made"]["cached"]) and stage not in events["made"]["cached"]
    run_id = events["run"]["run_id"]
    parent = read_json(chain.workspace(run_id) / ".run" / "run.json")["mlflow_parent"]
    told = httpx.get(
        f"{chain.layout.mlflow_url}/api/2.0/mlflow/runs/get", params={"run_id": parent}, trust_env=False
    ).json()["run"]["data"]["tags"]
    reason = {tag["key"]: tag["value"] for tag in told}["ado.reason"]
    assert seen and any(words in reason for words in seen), (seen, reason)


def test_a_clean_of_everything_leaves_registered_versions_that_come_back_to_the_byte(chain, tmp_path):
    """`mlx-tasks clean` of all that the runs before left, Airflow's rows and logs among it, under the running stack."""
    environment = chain.environment | {
        "ADO_REPOSITORY": str(chain.root),
        "MLFLOW_TRACKING_URI": chain.layout.mlflow_url,
    }
    work = chain.workspace() / "work"
    made = {str(path.relative_to(work)): sha256_file(path) for path in work.rglob("*") if path.is_file()}
    rows = len(chain.api.tasks(DAG_ID, chain.run_id))
    assert rows and list((chain.layout.airflow_home / "logs").glob("dag_id=*/run_id=*"))

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mlx_tasks", *arguments],
            cwd=chain.root, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    done = command("clean", "--older-than", "0m", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not chain.workspace().exists()
    assert f"runs/{run_slug(chain.run_id)}" in git(chain.root, "branch", "--list", "runs/*")
    assert not list((chain.layout.airflow_home / "logs").glob("dag_id=*/run_id=*"))
    done = command("reproduce", "digits-sampler/1", "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bundle: the same bytes as models:/digits-sampler/1" in done.stdout
    again = tmp_path / "again" / "work"
    assert {str(path.relative_to(again)): sha256_file(path) for path in again.rglob("*") if path.is_file()} == made


def test_ctrl_c_ends_the_run_and_the_stack_and_leaves_no_process(chain):
    process = start_demo(chain.root, chain.environment, "--set", "seed=5")
    for line in process.stdout:
        if "▶ train" in line or "[train" in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED, output
    assert "all ended" in output
    assert not chain.layout.record.exists()
    state = str(chain.layout.state)
    left = []
    for other in psutil.process_iter():
        try:
            if other.environ().get("ADO_STATE") == state and other.status() != psutil.STATUS_ZOMBIE:
                left.append((other.pid, other.cmdline()))
        except psutil.Error:
            continue
    left = [entry for entry in left if entry[0] != os.getpid()]
    assert not left
