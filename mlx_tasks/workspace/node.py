"""A DAG node: one stage of dvc.yaml, run in its run's workspace by a fresh process, wherever that run's tasks go."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import psutil

from mlx_tasks.catalog import STAGES, dvc_target
from mlx_tasks.errors import DataError, ExitCode, InterruptedStageError, StageError, UnavailableError
from mlx_tasks.events import EVENTS_VARIABLE, emit
from mlx_tasks.files import read_json, write_json
from mlx_tasks.locks import held
from mlx_tasks.params import load_config
from mlx_tasks.stages.record import NODE_VARIABLE, record_path
from mlx_tasks.supervision import PARENT_VARIABLE, ParentWatch, parents_for_child
from mlx_tasks.workspace import git, mlflow_parent, outs, shared_runs
from mlx_tasks.workspace.cache_check import mend_what_replaces
from mlx_tasks.workspace.courier import courier
from mlx_tasks.workspace.dvc_walk import without_unreadable_files
from mlx_tasks.workspace.memory import (
    MICRO_BATCH_VARIABLE,
    current_micro_batch,
    halve_micro_batch,
    memory_ran_out,
    oom_kills,
)
from mlx_tasks.workspace.opening import Run, ensure_workspace
from mlx_tasks.workspace.paths import Places

if TYPE_CHECKING:
    from dvc.repo import Repo

logger = logging.getLogger(__name__)

RUN_COMMIT_VARIABLE = "MLX_TASKS_RUN_COMMIT"
RUN_ID_VARIABLE = "MLX_TASKS_RUN_ID"
COMMITTED = ("params.yaml", outs.LOCK_FILE)


class Spec(TypedDict):
    """What a node is asked to do.

    run: as `open_run` gave it. stage, arguments: what to run. locks: dvc.lock entries of the stages before it.
    commit: when to commit params.yaml and dvc.lock on the run's branch: "before" or "after" the stage, or "".
    fan_out: the stage with slots whose arguments to tell, for the task that is mapped over them; or "".
    """

    run: Run
    stage: str
    arguments: dict[str, int]
    locks: dict[str, outs.LockEntry]
    commit: str
    fan_out: NotRequired[str]


def run_node(places: Places, spec: Spec) -> int:
    """Run the node; the exit code is the stage's own, 128 + N where signal N killed it. Says its result as an event.

    The result: target, status (ran, cached or failed), exit_code, message, seconds, lock (the stage's dvc.lock entry),
    metrics, mlflow_run_id, and fan_out (the arguments of each task of the stage that the spec names so).
    """
    started = time.time()
    target = dvc_target(spec["stage"], **spec["arguments"])
    result: dict[str, Any] = {"target": target, "status": "failed", "message": "", "mlflow_run_id": None}
    code = int(ExitCode.OK)
    with ParentWatch(), _forwarding_signals() as told_to_stop:
        try:
            result |= _run(places, spec, target)
        except StageFailed as failure:
            code, result["message"] = failure.code, str(failure)
        except StageError as error:
            code, result["message"] = int(error.exit_code), str(error)
        if told_to_stop and code not in (ExitCode.OK, ExitCode.INTERRUPTED):
            code = int(ExitCode.INTERRUPTED)
    result |= {"exit_code": code, "seconds": time.time() - started}
    if result["status"] == "failed":
        print(f"{target}: {result['message']}", file=sys.stderr, flush=True)
    else:
        print(f"{target}: {result['status']} ({result['seconds']:.1f} s)", flush=True)
    emit("result", **result)
    return code


class StageFailed(Exception):
    """The stage's process ended with a code that is not 0."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


def commit_run(places: Places, run: Run, workspace: Path, message: str) -> str:
    """Commit the run's params.yaml and dvc.lock on its branch; the commit."""
    with held(places.lock("git"), f"commit of {run['run_id']}", what="git"):
        commit = git.commit_files(workspace, run["branch"], message, COMMITTED)
    if places.git_remote:
        git.push(places.repository, places.git_remote, run["branch"])
    return commit


def _run(places: Places, spec: Spec, target: str) -> dict[str, Any]:
    run = spec["run"]
    workspace = ensure_workspace(places, run)
    what = f"the workspace {run['slug']}"
    with held(places.lock(run["slug"]), target, what=what, say=lambda text: print(text, flush=True)):
        outs.merge_lock(workspace, spec["locks"])
        environment = _stage_environment(run, workspace, target)
        if spec["commit"] == "before":
            environment[RUN_COMMIT_VARIABLE] = commit_run(places, run, workspace, f"Artifacts of run {run['run_id']}")
        os.environ.update(environment)
        result = _reproduce(places, run, workspace, spec["stage"], target)
        if fan_out := spec.get("fan_out"):
            result["fan_out"] = [{**spec["arguments"], "slot": slot} for slot in _slots(workspace, fan_out)]
        if spec["commit"] == "after":
            result["commit"] = commit_run(places, run, workspace, f"Artifacts and report of run {run['run_id']}")
    return result


def _slots(workspace: Path, stage: str) -> tuple[int, ...]:
    """A stage's slots, as the run's params have them."""
    found: Any = load_config(workspace)
    for part in STAGES[stage].slots.split("."):
        found = getattr(found, part)
    return found


def _reproduce(places: Places, run: Run, workspace: Path, stage_name: str, target: str) -> dict[str, Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.chdir(workspace)
    token = os.environ[NODE_VARIABLE]
    outs.drop_cut_lock(workspace)
    with contextlib.closing(Repo(str(workspace))) as repo, without_unreadable_files():
        repo.scm_context.quiet = True  # what is committed is `commit_run`'s, and nobody's to `git add`
        brought = outs.fetch_deps(repo, outs.stage_of(repo, target))
        if brought:
            print(f"{target}: brought {', '.join(brought)}", flush=True)
        kills_before = oom_kills()
        say = partial(print, f"{target}:", flush=True)
        shared_runs.bring(places, repo, target, say)
        try:
            with courier(places, run["slug"], target, workspace, say):
                _reproduce_sound(repo, target)
        except DvcException as error:
            raise _failure(workspace, stage_name, target, token, kills_before, error) from error
        ran = _own_record(workspace, target, token) is not None
        entry = outs.lock_entry(workspace, target)
        if entry is None:
            raise UnavailableError(f"DVC ran {target} and wrote no lock entry: see the lines above")
        record = _keep_record(places, workspace, target, entry, ran)
        stage = outs.stage_of(repo, target)
        outs.push_outs(repo, stage)
        shared_runs.tell(places, repo, target, entry, say)
        return {
            "status": "ran" if ran else "cached",
            "lock": entry,
            "metrics": outs.small_metrics(stage),
            "mlflow_run_id": record.get("mlflow_run_id"),
            "mlflow_url": record.get("mlflow_url"),
        }


def _reproduce_sound(repo: Repo, target: str) -> None:
    """DVC's reproduce, with what it has of the stage's outs read before and after."""
    if rotten := mend_what_replaces(repo, outs.stage_of(repo, target)):
        print(f"{target}: rotten in this machine's cache, asked of the store: {', '.join(rotten)}", flush=True)
    for _ in range(2):
        repo.reproduce(targets=[target], single_item=True)  # pyright: ignore[reportCallIssue]  (DVC makes a function its method)
        rotten = outs.drop_rotten_outs(repo, outs.stage_of(repo, target))
        if not rotten:
            return
        print(f"{target}: rotten in this machine's cache, made again: {', '.join(rotten)}", flush=True)
    raise UnavailableError(f"files in {repo.cache.local.path} change on their own: check the disk")


def _failure(
    workspace: Path, stage_name: str, target: str, token: str, kills_before: int, error: BaseException
) -> Exception:
    """What DVC's exception means: the stage's own code and words where it could say them."""
    cause: BaseException | None = error
    status = None
    while cause is not None and status is None:
        found = re.search(r"exited with (-?\d+)$", str(cause))
        status = int(found[1]) if found else None
        cause = cause.__cause__
    record = _own_record(workspace, target, token)
    if record is not None and record["exit_code"]:
        code, message = int(record["exit_code"]), record["message"]
    elif status is None:
        causes = f"{error}" + (f": {error.__cause__}" if error.__cause__ else "")
        return UnavailableError(f"DVC could not run {target}: {causes}")
    else:
        code = 128 - status if status < 0 else status
        message = (
            f"killed by signal {code - 128}" if code > 128 else f"the stage ended with {code}; see its lines above"
        )
    if STAGES[stage_name].accelerator and memory_ran_out(code, kills_before):
        smaller = halve_micro_batch(workspace, stage_name, target)
        if smaller is None:
            return DataError(f"{message}; not even one image a micro-batch fits: choose a smaller model or resolution")
        message += f"; the next try takes micro-batches of {smaller}"
    return StageFailed(code, message)


def _own_record(workspace: Path, target: str, token: str) -> dict[str, Any] | None:
    """The stage's record if the process that this node started wrote it."""
    try:
        record = read_json(record_path(workspace, target))
    except (OSError, ValueError):
        return None
    return record if record.get("node") == token else None


def _keep_record(places: Places, workspace: Path, target: str, entry: outs.LockEntry, ran: bool) -> dict[str, Any]:
    """The stage's record; a cached stage gets that of the run which made its outs, marked as cached."""
    kept = shared_runs.record_file(places, entry)
    path = record_path(workspace, target)
    if ran:
        record = read_json(path)
        write_json(kept, record)
        return record
    source = kept if kept.exists() else path
    record = read_json(source) if source.exists() else {"target": target, "seconds": None, "mlflow_run_id": None}
    record["cached"] = True
    write_json(path, record)
    return record


def _stage_environment(run: Run, workspace: Path, target: str) -> dict[str, str]:
    """The stage runs the workspace's own code, by this environment's interpreter, and must not outlive this node."""
    values = {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(workspace),
        "PYTHONUNBUFFERED": "1",
        "SHELL": "/bin/sh",
        PARENT_VARIABLE: parents_for_child(),
        EVENTS_VARIABLE: os.environ.get(EVENTS_VARIABLE, ""),
        RUN_ID_VARIABLE: run["slug"],
        RUN_COMMIT_VARIABLE: run["commit"],
        mlflow_parent.PARENT_VARIABLE: run["mlflow_parent"] or "",
        NODE_VARIABLE: uuid.uuid4().hex,
        "DVC_NO_ANALYTICS": "1",
    }
    micro_batch = current_micro_batch(workspace, target)
    return values | ({MICRO_BATCH_VARIABLE: str(micro_batch)} if micro_batch else {})


@contextlib.contextmanager
def _forwarding_signals() -> Iterator[list[int]]:
    """SIGTERM goes on to the children, and this process waits for how they end. Yields the signals received."""
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        children = psutil.Process().children(recursive=True)
        if not children:
            raise InterruptedStageError("told to stop before its stage ran")
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.send_signal(signum)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def known_stage(name: str) -> str:
    """The name, if the catalog has it.  Raises: DataError listing the names."""
    if name not in STAGES:
        raise DataError(f"no stage named {name!r}; there are: {', '.join(STAGES)}")
    return name
