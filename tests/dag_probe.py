"""Imports dags/optimize_diffusion.py in a process of its own and prints what it holds, as one line of JSON.

Environment: DAGS and PLUGINS (folders), HEAVY (JSON list of modules to look for), CONFS (JSON list of runs' confs).
"""

import json
import os
import sys
import time

import airflow.sdk

sys.path[:0] = [os.environ["DAGS"], os.environ["PLUGINS"]]
started = time.process_time()
import optimize_diffusion as module  # noqa: E402

seconds = time.process_time() - started
heavy = sorted({name.split(".")[0] for name in sys.modules} & set(json.loads(os.environ["HEAVY"])))

from airflow.serialization.serialized_objects import DagSerialization  # noqa: E402

dag = module.optimize_diffusion()
# What the scheduler and the API server have: the DAG written to the database and read back.
stored = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))


def attribute(task: airflow.sdk.BaseOperator, name: str) -> object:
    """An argument of a task's operator, mapped or not."""
    return task.partial_kwargs.get(name) if task.is_mapped else getattr(task, name, None)


def refusal(conf: dict[str, object]) -> str | None:
    """Why a run with this conf is refused, as the API server decides it."""
    try:
        stored.params.deep_merge(conf).validate()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


tasks = {
    task.task_id: {
        **{name: attribute(task, name) for name in ("stage", "arguments", "commit", "fan_out", "map_index_template")},
        "mapped": task.is_mapped,
        "pool": task.pool,
        "queue": task.queue,
        "retries": task.retries,
        "delay": task.retry_delay.total_seconds(),
        "upstream": sorted(task.upstream_task_ids),
        "setup": task.is_setup,
        "teardown": task.is_teardown,
        "links": [link.name for link in task.operator_extra_links],
    }
    for task in dag.tasks
}
told = {
    "seconds": seconds,
    "heavy": heavy,
    "tasks": tasks,
    "max_active_runs": stored.max_active_runs,
    "tags": sorted(stored.tags),
    "doc": stored.doc_md,
    "schedule": stored.timetable.summary,
    "catchup": stored.catchup,
    "refusals": [refusal(conf) for conf in json.loads(os.environ["CONFS"])],
    "form": {
        name: {"schema": param.schema, "text": param.description}
        for name, param in ((name, dag.params.get_param(name)) for name in dag.params)
    },
}
print("PROBE" + json.dumps(told))
