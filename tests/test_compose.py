"""Facts about docker-compose.yaml: it is valid, pinned, on loopback, and starts with no secret missing."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

SECRETS = (
    "POSTGRES_PASSWORD",
    "AIRFLOW_FERNET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_API_SECRET_KEY",
    "AIRFLOW_ADMIN_PASSWORD",
)


@pytest.fixture(scope="module")
def text(repository):
    return (repository / "docker-compose.yaml").read_text()


@pytest.fixture(scope="module")
def services(text):
    return yaml.safe_load(text)["services"]


def test_the_control_plane_is_whole(services):
    airflow = {"airflow-init", "airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"}
    assert set(services) == airflow | {"postgres", "mlflow"}


def test_every_image_is_pinned(services, repository):
    for name, service in services.items():
        image, _, tag = service["image"].rpartition(":")
        assert image and re.match(r"\d+(\.\d+)+", tag), f"{name}: {service['image']}"
        if "build" in service:
            dockerfile = (repository / service["build"]["context"] / service["build"]["dockerfile"]).read_text()
            assert re.search(r"^FROM \S+:\d+(\.\d+)+\S*$", dockerfile, re.M)
            installs = re.findall(r"^RUN pip install .*$", dockerfile, re.M)
            assert installs and all("==" in word for line in installs for word in re.findall(r'"([^"]+)"', line))


def test_the_images_hold_the_versions_of_the_lock(services, repository):
    lock = (repository / "requirements.lock").read_text()
    for package in ("apache-airflow", "apache-airflow-providers-edge3", "mlflow"):
        version = re.search(rf"^{package}==(\S+)", lock, re.M).group(1)
        assert any(
            f'"{package}=={version}"' in path.read_text()
            for path in (repository / "include/compose").glob("*.Dockerfile")
        )


def test_every_lasting_service_has_a_healthcheck_and_waits_for_what_it_needs(services):
    for name, service in services.items():
        if name != "airflow-init":
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed == "airflow-init" else "service_healthy"
            assert how == {"condition": expected}


def test_ports_are_on_loopback_only(services):
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:5000:5000", "127.0.0.1:8080:8080"]


def test_secrets_come_from_the_environment_and_a_missing_one_is_refused(text):
    assert set(re.findall(r"\$\{(\w+):\?[^}]+\}", text)) == set(SECRETS)
    assert not re.findall(r"(?<!\$)\$\{\w+(?::-[^}]*)?\}", text)  # no variable without a refusal


def test_what_is_mounted_is_there(services, repository):
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    for path in (entry for entry in mounted if entry.startswith("./")):
        assert (repository / path).exists(), path


def test_no_task_computes_in_a_container(services):
    environment = services["airflow-scheduler"]["environment"]
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "airflow.providers.edge3.executors.EdgeExecutor"
    assert environment["ADO_QUEUE"] == "mlx"


COMPOSE = [
    command
    for command, there in (
        (["docker-compose"], shutil.which("docker-compose")),
        (
            ["docker", "compose"],
            shutil.which("docker")
            and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0,
        ),
    )
    if there
]


@pytest.mark.skipif(not COMPOSE, reason="neither docker-compose nor docker compose is installed")
@pytest.mark.parametrize("command", COMPOSE, ids=" ".join)
def test_compose_itself_takes_the_file_and_refuses_a_missing_secret(command, repository, tmp_path):
    (tmp_path / "none.env").write_text("")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **dict.fromkeys(SECRETS, "x1")}
    check = [*command, "-f", "docker-compose.yaml", "--env-file", str(tmp_path / "none.env"), "config"]
    done = subprocess.run(check, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = yaml.safe_load(done.stdout)["services"]
    assert told["mlflow"]["healthcheck"] and "x1@postgres" in str(told["airflow-scheduler"]["environment"])
    for secret in SECRETS:
        less = {key: value for key, value in environment.items() if key != secret}
        done = subprocess.run(check, cwd=repository, env=less, capture_output=True, text=True)
        assert done.returncode != 0 and "docs/control_plane.md" in done.stderr, secret
