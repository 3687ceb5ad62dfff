"""What a stage's process is given of its surroundings, and what no process list shows."""

import os
import subprocess
import sys

import pytest

from mlx_tasks.stage_environment import KEEP_VARIABLE, for_stages

OTHERS = [
    "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH", "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW_CONN_STORE", "AIRFLOW_ADMIN_PASSWORD", "_AIRFLOW_WWW_USER_PASSWORD",
    "ADO_ALERT_TOKEN", "ADO_ALERT_SECRET", "ADO_WORKER_KEY", "MLX_TASKS_SERVER_KEY", "GITHUB_TOKEN", "OPENAI_API_KEY",
    "POSTGRES_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "SENTRY_DSN", "DATABASE_URL", "npm_config_auth_token",
]  # fmt: skip
NEEDED = [
    "PATH", "HOME", "PWD", "LANG", "TMPDIR", "https_proxy", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "HF_HOME", "ADO_STATE", "ADO_DVC_REMOTE",
    "ADO_GIT_REMOTE", "ADO_LIMIT_HOURS", "ADO_SERVER_URL", "MLX_TASKS_THREADS", "MLX_TASKS_LOCKS",
    "MLFLOW_TRACKING_USERNAME", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "TOKENIZERS_PARALLELISM",
]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_stage_is_given_no_secret_of_others(name):
    assert for_stages({name: "x"}) == {}
    assert for_stages({name: "x", KEEP_VARIABLE: f"OTHER, {name}"})[name] == "x", "unless somebody asks for it"


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_stage_needs_it_has(name):
    assert for_stages({name: "x"}) == {name: "x"}


def test_mlflows_tables_are_brought_up_to_date_without_a_command_line_that_holds_the_password(repository, tmp_path):
    """With no program to be found, only what is done in the process itself can work."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "PATH": ""}
    made = f"from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Store; Store({uri!r}, '.')"
    subprocess.run([sys.executable, "-c", made], env=environment, cwd=tmp_path, check=True, timeout=120)
    init = str(repository / "include/compose/init_mlflow.py")
    script = f"import runpy; runpy.run_path({init!r})['update_tables']({uri!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "no tables yet" not in done.stdout
