"""The DAG as Airflow sees it: light, complete, checked at the door; and the layers of the code."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_tasks.catalog import SEARCH_GENERATIONS, STAGES
from mlx_tasks.config import Config
from mlx_tasks.form import fields, overrides, resolve

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("mlx", "torch", "mlflow", "dvc", "optuna", "gymnasium", "stable_baselines3", "great_expectations", "numpy")

GOOD: list[dict[str, Any]] = [
    {},
    {
        "resolutions": [8, 16],
        "steps_to_reach": 4,
        "search_trials": 2,
        "score_tasks": 4,
        "ppo_steps": 64,
        "nfe_budgets": [4, 8],
    },
    {"promotion": "off", "seed": 7, "overrides": {"train.steps": 10, "model.block_out_channels": [8, 16]}},
    {"gate_limits": [{"metric": "frechet_distance", "direction": "below", "limit": 0.2}], "dataset": "/data/images"},
]
BAD: list[dict[str, Any]] = [
    {"resolutions": ["eight"]},
    {"resolutions": [2]},
    {"resolutions": []},
    {"steps_to_reach": 0},
    {"search_trials": 65},
    {"score_tasks": 0},
    {"ppo_steps": 1},
    {"nfe_budgets": [1]},
    {"methods": ["magic"]},
    {"gate_limits": [{"metric": "fid", "direction": "sideways", "limit": 1}]},
    {"gate_limits": [{"metric": "fid", "direction": "below"}]},
    {"promotion": "maybe"},
    {"seed": -1},
    {"seed": "one"},
    {"preset": "no-such-preset"},
    {"overrides": {"Train Steps": 1}},
    {"overrides": "train.steps=3"},
]


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> dict[str, Any]:
    """The DAG file imported in a process of its own, and what it holds."""
    return _probe(tmp_path_factory.mktemp("airflow"))


def _probe(home: Path, **more: str) -> dict[str, Any]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ADO_", "AIRFLOW", "MLX_TASKS", "MLFLOW"))}
    env = {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "DAGS": str(ROOT / "dags"),
        "PLUGINS": str(ROOT / "plugins"),
        "PYTHONPATH": str(ROOT),
        "HEAVY": json.dumps(HEAVY),
        "CONFS": json.dumps(GOOD + BAD),
        **more,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "dag_probe.py")], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("PROBE"))[5:])


def test_parsing_is_light(probe):
    assert probe["heavy"] == []
    assert probe["seconds"] < 1.0


def test_the_dag_has_what_every_dag_has(probe):
    assert probe["tags"] == ["diffusion", "mlx"]
    assert probe["max_active_runs"] == 2
    assert not probe["catchup"]
    assert probe["doc"].startswith("Validate a dataset, train, distill")
    assert {task["retries"] for task in probe["tasks"].values()} == {2}


def test_the_dag_dvc_and_the_catalog_name_the_same_stages(probe):
    nodes = {(task["stage"], json.dumps(task["arguments"])) for task in probe["tasks"].values() if task["stage"]}
    assert {stage for stage, _ in nodes} == set(STAGES)
    plans = {json.loads(arguments)["generation"] for stage, arguments in nodes if stage == "search_plan"}
    assert plans == set(range(SEARCH_GENERATIONS))
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    planned = {f"search_plan_{generation}" for generation in range(SEARCH_GENERATIONS)}
    assert set(pipeline) == set(STAGES) - {"search_plan"} | planned
    for name, stage in pipeline.items():
        command = stage["cmd"].split()
        assert command[0] == "mlx-tasks"
        assert name in (command[1], f"{command[1]}_{command[-1]}")
        assert STAGES[command[1]].module.replace(".", "/") + ".py" in stage["deps"]
    assert pipeline["search_trial"]["matrix"]["generation"] == list(range(SEARCH_GENERATIONS))
    for name, stage in STAGES.items():
        assert bool(stage.slots) == ("slot" in stage.arguments)
        if stage.slots:
            assert pipeline[name]["matrix"]["slot"] == f"${{{stage.slots}}}"


def test_the_chain_runs_in_dvcs_order(probe):
    tasks = probe["tasks"]

    def before(task_id: str) -> set[str]:
        direct = set(tasks[task_id]["upstream"])
        return direct.union(*(before(name) for name in direct))

    order = ["open_run", "validate", "train", "distill", "search.plan_0", "search.trial_0", "search.plan_1"]
    order += ["search.trial_1", "search.select", "tune", "evaluate.features", "evaluate.image_text"]
    order += ["evaluate.score", "evaluate.gather"]
    order += ["register.register", "register.report", "close_run"]
    assert set(order) == set(tasks) - {"announce"}
    assert before("announce") == set(order) - {"close_run"}
    for position, task_id in enumerate(order):
        assert before(task_id) >= set(order[:position])
    groups = list(dict.fromkeys(name.split(".")[0] for name in order))
    assert groups[1:-1] == ["validate", "train", "distill", "search", "tune", "evaluate", "register"]
    mapped = [name for name in order if tasks[name]["mapped"]]
    assert mapped == ["search.trial_0", "search.trial_1", "evaluate.score"]
    for name in mapped:  # mapped over what the one task before it hands on, and told apart in the grid
        (before_it,) = tasks[name]["upstream"]
        assert tasks[before_it]["fan_out"] == tasks[name]["stage"]
        assert tasks[name]["map_index_template"] == "slot {{ task.arguments['slot'] }}"


def test_what_computes_with_mlx_takes_the_one_slot_pool(probe):
    for task in probe["tasks"].values():
        accelerated = task["stage"] is not None and STAGES[task["stage"]].accelerator
        assert task["pool"] == ("mlx" if accelerated else "default_pool")


def test_the_run_is_committed_before_it_is_registered_and_closed_whatever_happens(probe):
    tasks = probe["tasks"]
    assert tasks["register.register"]["commit"] == "before"
    assert tasks["register.report"]["commit"] == "after"
    assert tasks["open_run"]["setup"]
    assert tasks["close_run"]["teardown"]


def test_nodes_link_to_mlflow_and_the_last_one_to_the_report(probe):
    linked = {name for name, task in probe["tasks"].items() if "MLflow run" in task["links"]}
    assert linked == set(probe["tasks"]) - {"announce"}
    assert [name for name, task in probe["tasks"].items() if "Report" in task["links"]] == ["register.report"]


def test_every_field_of_the_form_is_typed_and_described(probe):
    names = ["preset", "dataset", "resolutions", "steps_to_reach", "search_trials", "score_tasks", "methods"]
    names += ["ppo_steps", "nfe_budgets"]
    names += ["gate_limits", "promotion", "seed", "start_from", "begin_with", "alerts", "reason", "overrides"]
    assert list(probe["form"]) == names
    for field in probe["form"].values():
        assert field["schema"]["type"]
        assert field["schema"]["title"]
        assert len(field["text"]) > 30
    known = ["remembered", "shortest_path", "cma_es", "ppo", "gradient_levels", "gradient", "least_squares"]
    assert probe["form"]["methods"]["schema"]["items"]["enum"] == known
    assert probe["form"]["nfe_budgets"]["schema"]["items"] == {"type": "integer", "minimum": 2, "maximum": 100}
    assert probe["form"]["seed"]["schema"]["exclusiveMaximum"] == 2**31


def test_a_bad_value_is_refused_at_the_trigger_and_a_good_one_is_not(probe):
    refused = dict(zip(map(json.dumps, GOOD + BAD), probe["refusals"], strict=True))
    assert {conf for conf, reason in refused.items() if reason is None} == set(map(json.dumps, GOOD))
    assert all("ParamValidationError" in reason for reason in refused.values() if reason)


def test_what_the_form_lets_through_the_tree_judges_too():
    assert resolve(ROOT, {}) == resolve(
        ROOT, {field.name: field.default for field in fields(ROOT) if field.name != "preset"}
    )
    assert overrides({"promotion": "off", "search_trials": 3, "seed": 0, "resolutions": [8]}) == {
        "train.resolutions": [8], "search.slots": [0, 1, 2], "gate.promote": False, "seed": 0,
    }  # fmt: skip
    assert overrides({"score_tasks": 2}) == {"evaluate.slots": [0, 1]}
    assert overrides({"seed": 1, "overrides": {"seed": 2}}) == {"seed": 2}
    assert overrides({"seed": None, "dataset": "", "nfe_budgets": [], "promotion": "preset"}) == {}
    assert resolve(ROOT, {"overrides": {"distill.target_steps": 4}}).distill.step_counts[-1] == 4
    assert isinstance(resolve(ROOT, {}), Config)


def test_the_environment_configures_the_schedule_the_queue_and_the_retries(tmp_path):
    probe = _probe(
        tmp_path, ADO_SCHEDULE="0 3 * * *", ADO_QUEUE="mac", ADO_RETRIES="5", ADO_RETRY_DELAY_S="0.5", ADO_POOL="gpu"
    )
    assert probe["schedule"] == "Asset or 0 3 * * *"
    train, opened = probe["tasks"]["train"], probe["tasks"]["open_run"]
    assert (train["queue"], train["pool"], train["retries"], train["delay"]) == ("mac", "gpu", 5, 0.5)
    assert opened["queue"] == "default"  # where the checkout is


KERNELS = ("diffusion", "models", "samplers")
LOOPS = ("training", "distillation", "search", "rl", "learned_steps")
EDGES = (
    "stages",
    "tracking",
    "registry",
    "serving",
    "workspace",
    "stack",
    "fleet",
    "report",
    "monitoring",
    "hosts",
    "cli",
    "data",
)
EVALUATE = {"mlx_tasks/models/folder.py", "mlx_tasks/samplers/driver.py"}
"""What evaluates among the kernels: weights where they are loaded, and the samplers' one loop, once a step."""


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / "mlx_tasks" / package).rglob("*.py"))]


def imports(path: Path, *, typing_only: bool = False) -> set[str]:
    """Every module that a file imports, at its top or in a function (but not under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not typing_only:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def climbs(path: Path) -> set[str]:
    """The loops and edges that a kernel's file imports."""
    refused = {f"mlx_tasks.{name}" for name in (*LOOPS, *EDGES)}
    return {name for name in imports(path) if ".".join(name.split(".")[:2]) in refused}


def evaluations(path: Path) -> set[str]:
    """What a file calls that computes or waits at once."""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    return {name for name in calls if name in ("mx.eval", "mx.async_eval") or name.endswith(".item")}


@pytest.mark.parametrize("path", sources(*KERNELS), ids=relative)
def test_kernels_import_neither_loops_nor_edges(path):
    assert not climbs(path)


@pytest.mark.parametrize("path", sources(*LOOPS), ids=relative)
def test_loops_import_no_edges(path):
    refused = {f"mlx_tasks.{name}" for name in EDGES if name != "data"}
    assert not {name for name in imports(path) if ".".join(name.split(".")[:2]) in refused}


@pytest.mark.parametrize("path", sources(*KERNELS), ids=relative)
def test_kernels_evaluate_nothing(path):
    found = evaluations(path)
    assert bool(found) == (relative(path) in EVALUATE), found or "take it off the list: it evaluates nothing"


def test_the_package_imports_no_airflow_and_the_plugins_no_mlx():
    for path in sources("."):
        assert not {name for name in imports(path) if name.split(".")[0] == "airflow"}, relative(path)
    for path in [*(ROOT / "plugins").glob("*.py"), *(ROOT / "dags").glob("*.py")]:
        assert not {name for name in imports(path) if name.split(".")[0] in HEAVY}, relative(path)
