"""Airflow operators that run `mlx-tasks` in fresh processes: open a run, run one stage of it, close it.

Tasks of Airflow are forks of a long process, and MLX survives no fork; so nothing here imports MLX, MLflow or DVC. The
child's lines go to the task's log as they come; its exit code (mlx_tasks/errors.py) decides whether a retry can help.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from airflow.sdk import Asset, BaseOperator, BaseOperatorLink
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from mlx_tasks.assets import CHAMPION, in_order
from mlx_tasks.catalog import dvc_target
from mlx_tasks.errors import RETRYABLE, ExitCode
from mlx_tasks.events import EVENTS_VARIABLE, parse_event
from mlx_tasks.stage_environment import for_stages
from mlx_tasks.supervision import PARENT_VARIABLE, identity
from mlx_tasks.time_limits import VARIABLE, task_timeout

RESULT_KEY = "result"
"""XCom key of what a task hands on: a small dict. A stage's holds its dvc.lock entry, from which later tasks fetch."""

CHAMPION_ASSET = Asset(CHAMPION)

GRACE_S = 3.0
"""Between SIGTERM and SIGKILL of the child's group; Airflow gives the whole task five seconds."""

REPORT_PATH = "/optimizer/runs/{run_id}/report"
"""Where the run view (optimizer_plugin.py) serves a run's report."""


class MlflowRunLink(BaseOperatorLink):
    """The stage's MLflow run; there from the moment the run is made."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The address that the stage told, or nothing."""
        return getattr(operator, "mlflow_url", None) or ""


class ReportLink(BaseOperatorLink):
    """The run's report."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Its address in the run view."""
        base = conf.get("api", "base_url", fallback="") or ""
        return base.rstrip("/") + REPORT_PATH.format(run_id=quote(ti_key.run_id, safe=""))


class ProcessOperator(BaseOperator):
    """Runs `python -m mlx_tasks COMMAND` in a session of its own, with a JSON spec on its stdin."""

    ui_color = "#e8f0fb"
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_url: str | None = None
        self._process: subprocess.Popen[str] | None = None

    def call(self, context: Any, command: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Run the command to its end, its lines in this task's log; the result that it told.

        Raises: AirflowFailException for an end that a retry cannot mend, AirflowException for one that it can. A task
            that takes longer than its `execution_timeout` is of the first kind: what hung once would hang again.
        """
        result: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_tasks", command, "--spec", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_child_environment(),
            start_new_session=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code and lines say why
                self._process.stdin.write(json.dumps(spec))
                self._process.stdin.close()
            last = ""
            for line in self._process.stdout:
                event = parse_event(line)
                if event is None:
                    last = line.strip() or last
                    self.log.info("%s", line.rstrip("\n"))
                elif event["event"] == "mlflow_run":
                    self._tell_mlflow_run(context, event["url"])
                elif event["event"] == "result":
                    result = {key: value for key, value in event.items() if key != "event"}
            code = self._process.wait()
        except AirflowTaskTimeout:
            self.on_kill()  # the stage has the time to say so and to keep its checkpoint
            hours = self.execution_timeout.total_seconds() / 3600 if self.execution_timeout else 0.0
            words = f"took longer than {hours:g} h, with all that it waited for ({VARIABLE}); its checkpoint is kept"
            raise AirflowFailException(f"TIMED_OUT (exit code {ExitCode.TIMED_OUT:d}): {words}") from None
        finally:
            self._end_group()
        if code:
            raise failure(code, result.get("message") or last, command)
        return result

    def on_kill(self) -> None:
        """Airflow wants the task to end: the child's whole group gets SIGTERM, then SIGKILL."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._end_group()

    def upstream_results(self, context: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """(the run, the dvc.lock entries by target) that all tasks upstream of this one have handed on."""
        tasks = sorted(self.get_flat_relative_ids(upstream=True))
        pulled = context["ti"].xcom_pull(task_ids=tasks, key=RESULT_KEY) if tasks else []
        results = [value for value in pulled if isinstance(value, dict)]
        runs = [value for value in results if value.get("kind") == "run"]
        if not runs:
            raise AirflowFailException(f"no task upstream of {self.task_id} has opened the run")
        return runs[0], {value["target"]: value["lock"] for value in results if value.get("lock")}

    def _tell_mlflow_run(self, context: Any, url: str) -> None:
        self.mlflow_url = url
        self.log.info("MLflow run: %s", url)
        context["ti"].xcom_push(key=MlflowRunLink().xcom_key, value=url)

    def _end_group(self) -> None:
        """Nothing of the child's session outlives the task."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class OpenRunOperator(ProcessOperator):
    """Checks the run's parameters, fixes its commit, and makes its workspace and its MLflow run."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Hand the run on; returns what a person wants to see of it."""
        form = dict(context["params"])
        form["alerts"] = [*(form.get("alerts") or []), *alerts_of(context.get("triggering_asset_events"))]
        run = self.call(context, "open-run", {"run_id": context["run_id"], "form": form})
        if run["mlflow_url"]:
            self._tell_mlflow_run(context, run["mlflow_url"])
        context["ti"].xcom_push(key=RESULT_KEY, value=run)
        return {key: run[key] for key in ("branch", "commit", "edited", "digest", "mlflow_url", "notes")}


class StageOperator(ProcessOperator):
    """Runs one stage of dvc.yaml in the run's workspace; unchanged, it says cached.

    Args:
        stage: the stage's name in the catalog.
        arguments: its integer arguments, for example {"generation": 0, "slot": 2}; templated, and may be mapped.
        commit: when to commit the run's params.yaml and dvc.lock on its branch: "before" or "after" the stage, or "".
        fan_out: a stage with slots, which the next task is mapped over.

    Returns: target, status, seconds and metrics; with `fan_out` that stage's arguments instead, one a slot.
    """

    template_fields: Sequence[str] = ("arguments",)

    def __init__(
        self,
        *,
        stage: str,
        arguments: dict[str, int] | None = None,
        commit: str = "",
        fan_out: str = "",
        **kwargs: Any,
    ) -> None:
        kwargs["execution_timeout"] = task_timeout(stage)  # not the default of other tasks
        super().__init__(**kwargs)
        self.stage = stage
        self.arguments = arguments or {}
        self.commit = commit
        self.fan_out = fan_out

    def execute(self, context: Any) -> Any:
        """Run the stage; hand its lock entry on."""
        run, locks = self.upstream_results(context)
        arguments = {key: int(value) for key, value in self.arguments.items()}
        spec = {"run": run, "stage": self.stage, "arguments": arguments, "locks": locks, "commit": self.commit}
        spec["fan_out"] = self.fan_out
        self.log.info("stage %s of run %s", dvc_target(self.stage, **arguments), run["run_id"])
        result = self.call(context, "node", spec)
        mapped = result.pop("fan_out", None)
        self.mlflow_url = result.get("mlflow_url") or self.mlflow_url
        context["ti"].xcom_push(key=RESULT_KEY, value=result)
        return mapped or {key: result[key] for key in ("target", "status", "seconds", "metrics")}


class ReportOperator(StageOperator):
    """The stage that writes the report, with a link to it."""

    operator_extra_links: ClassVar = (MlflowRunLink(), ReportLink())


class AnnounceOperator(BaseOperator):
    """Emits the asset `champion_model` where the run's version got the title; is skipped where it did not.

    Args:
        register: the task whose metrics tell.
    """

    def __init__(self, *, register: str, **kwargs: Any) -> None:
        super().__init__(outlets=[CHAMPION_ASSET], **kwargs)
        self.register = register

    def execute(self, context: Any) -> str:
        """Returns the version that is champion now."""
        told = (context["ti"].xcom_pull(task_ids=self.register) or {}).get("metrics", {})
        if not told.get("promoted"):
            raise AirflowSkipException("no new champion: the report says why")
        extra = {"model": told["model"], "version": str(int(told["version"]))}
        context["outlet_events"][CHAMPION_ASSET].extra = extra
        return f"{extra['model']}/{extra['version']}"


class CloseRunOperator(ProcessOperator):
    """Commits what a run made, also a failed one, and ends its MLflow run.

    Args:
        last: the target without which the run has not succeeded.
    """

    def __init__(self, *, last: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last = last

    def execute(self, context: Any) -> dict[str, Any]:
        """Returns: branch, commit, succeeded."""
        run, locks = self.upstream_results(context)
        self.mlflow_url = run["mlflow_url"]
        return self.call(context, "close-run", {"run": run, "locks": locks, "succeeded": self.last in locks})


def alerts_of(triggering_asset_events: Any) -> list[dict[str, Any]]:
    """The alerts of a monitor's asset events, each with the version it is about; the newest come last."""
    alerts = []
    for extra in (event.extra or {} for event in in_order(triggering_asset_events)):
        named = extra.get("name") and extra.get("version")
        about = {"begin_with": f"{extra['name']}/{extra['version']}"} if named else {}
        alerts += [one | about for one in extra.get("alerts", [])]
    return alerts


def failure(code: int, message: str, command: str) -> AirflowException:
    """The exception that an exit code asks for: of the kinds in mlx_tasks/errors.py only RETRYABLE ones are retried.

    A process that a signal ended (negative, or 128 and more) is retried: it goes on from its checkpoint.
    """
    by_signal = -code if code < 0 else code - 128
    if by_signal > 0:
        why = message or f"{command} was killed by signal {by_signal}"
        return AirflowException(f"{why} (signal {by_signal}); a retry goes on from the checkpoint")
    kind = ExitCode(code) if code in set(ExitCode) else ExitCode.UNKNOWN
    text = f"{kind.name} (exit code {code}): {message}"
    return AirflowException(text) if kind in RETRYABLE else AirflowFailException(text)


def _child_environment() -> dict[str, str]:
    """The child is given no secret of others, speaks events, and ends when this task's process does, or Airflow's
    supervisor of it.
    """
    parents = [identity()]
    # A supervisor makes its task the leader of a group, and so does a shell, which `nohup` asks to outlive.
    if os.getpgrp() == os.getpid() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        parents.append(identity(os.getppid()))
    repository = {"ADO_REPOSITORY": str(Path(__file__).resolve().parent.parent)}
    return {
        **repository,
        **for_stages(os.environ),
        EVENTS_VARIABLE: "1",
        PARENT_VARIABLE: ",".join(parents),
        "PYTHONUNBUFFERED": "1",
    }
