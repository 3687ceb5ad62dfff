"""Facts about docker-compose.yaml: it is valid, pinned, on loopback, and starts with no secret missing or weak."""

import os
import re
import shutil
import subprocess
import sys

import fleet_world
import pytest
import yaml
from debian import program
from fleet_world import read_values as values
from ports import free_port

AIRFLOW = {"airflow-init", *(f"airflow-{one}" for one in ("api-server", "scheduler", "dag-processor", "triggerer"))}
HOLDERS = {
    "POSTGRES_PASSWORD": {"postgres", "postgres-init"},
    "AIRFLOW_DB_PASSWORD": {"postgres-init", *AIRFLOW},
    "MLFLOW_DB_PASSWORD": {"postgres-init", "mlflow-init", "mlflow"},
    "AIRFLOW_FERNET_KEY": AIRFLOW,
    "AIRFLOW_SIGNING_KEY": AIRFLOW,
    "AIRFLOW_API_SECRET_KEY": AIRFLOW,
    "AIRFLOW_ADMIN_PASSWORD": {"airflow-init"},
    "MLFLOW_ADMIN_PASSWORD": {"mlflow-init", "mlflow"},
    "MLFLOW_SESSION_KEY": {"mlflow-init", "mlflow"},
    "GRAFANA_ADMIN_PASSWORD": {"grafana"},
    "WATCH_PASSWORD": {"proxy"},
    "STORE_ADMIN_ACCESS_KEY": {"store-init", "store-copy"},
    "STORE_ADMIN_SECRET_KEY": {"store-init", "store-copy"},
    "STORE_ACCESS_KEY": {"mlflow-init", "mlflow"},
    "STORE_SECRET_KEY": {"mlflow-init", "mlflow"},
    "ALERT_TOKEN": {"alertmanager", *AIRFLOW},
    "ALERT_SECRET": AIRFLOW,
}
"""Secret -> who is told it, beside check-secrets."""
SECRETS = tuple(HOLDERS)
DERIVED = {
    "WORKER_KEYS": AIRFLOW,
    "WORKER_LOGINS": {"mlflow-init"},
    "STORE_IDENTITIES": {"store"},
    "TLS_CERTIFICATE": {"proxy"},
    "TLS_KEY": {"proxy"},
    "ADO_HOSTS": {"proxy"},
    "REGISTRARS": {"proxy"},
}
"""What make_secrets.py derives, and who is told it."""
DOORS = {"8080", "8081", "5000", "8333", "3000", "9090", "9093"}
ONCE = {"airflow-init", "mlflow-init", "check-secrets", "store-init", "postgres-init"}
"""Services that run to their end."""
TOOLS = {"store-copy"}
"""Services that only a script starts."""


@pytest.fixture(scope="module")
def text(repository):
    return (repository / "docker-compose.yaml").read_text()


@pytest.fixture(scope="module")
def services(text):
    return yaml.safe_load(text)["services"]


def test_the_control_plane_is_whole(services):
    watch = {"prometheus", "alertmanager", "grafana"}
    assert set(services) == AIRFLOW | watch | ONCE | TOOLS | {"postgres", "mlflow", "store", "proxy"}
    assert {name for name, service in services.items() if service.get("profiles")} == TOOLS  # `up` starts no other


def test_every_image_is_pinned(services, repository):
    for name, service in services.items():
        image, _, tag = service["image"].rpartition(":")
        assert image and re.match(r"v?\d+(\.\d+)+", tag), f"{name}: {service['image']}"
        if "build" in service:
            dockerfile = (repository / service["build"]["context"] / service["build"]["dockerfile"]).read_text()
            assert re.search(r"^FROM \S+:\d+(\.\d+)+\S*$", dockerfile, re.M)
            installs = re.findall(r"^RUN pip install .*$", dockerfile, re.M)
            assert installs and all("==" in word for line in installs for word in re.findall(r'"([^"]+)"', line))


def test_the_images_hold_the_versions_of_the_lock(services, repository):
    lock = (repository / "requirements.lock").read_text()
    for package in ("apache-airflow", "apache-airflow-providers-edge3", "mlflow", "boto3", "psycopg2-binary"):
        version = re.search(rf"^{package}==(\S+)", lock, re.M).group(1)
        assert any(
            re.search(rf'"{package}(\[auth\])?=={re.escape(version)}"', path.read_text())
            for path in (repository / "include/compose").glob("*.Dockerfile")
        )


def test_every_lasting_service_has_a_healthcheck_and_waits_for_what_it_needs(services):
    for name, service in services.items():
        if name not in ONCE | TOOLS:
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ONCE else "service_healthy"
            assert how == {"condition": expected}
    for name in ("postgres", "alertmanager", "store"):
        assert services[name]["depends_on"].keys() == {"check-secrets"}, name


def test_tables_are_brought_up_to_date_before_the_servers_start(services):
    assert "mlflow-init" in services["mlflow"]["depends_on"]
    for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
        assert "airflow-init" in services[f"airflow-{name}"]["depends_on"], name


def test_postgres_is_healthy_only_when_others_can_reach_it(services):
    """While its image makes a cluster, a server listens on the socket alone, and goes again."""
    assert "-h" in services["postgres"]["healthcheck"]["test"]


def test_only_the_proxy_has_doors_and_they_are_on_loopback(services):
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    published = services["proxy"]["ports"]
    assert {port.rpartition(":")[2] for port in published} == DOORS
    assert all(re.match(r"\$\{ADO_BIND(_PEOPLE)?:-127\.0\.0\.1\}:", port) for port in published)
    people = {port.rpartition(":")[2] for port in published if "PEOPLE" in port}
    assert people == {"8080", "3000", "9090", "9093"}  # ADO_BIND opens what workers need, and no more
    assert services["proxy"]["networks"] == ["inside", "outside"]


def test_the_database_is_reached_by_who_has_a_part_in_it(services, text):
    assert yaml.safe_load(text)["networks"]["data"] == {"internal": True}
    assert {name for name, one in services.items() if "data" in one.get("networks", ())} == AIRFLOW | {
        "postgres", "postgres-init", "mlflow", "mlflow-init",
    }  # fmt: skip
    assert services["postgres"]["networks"] == ["data"]


def test_every_service_has_limits_and_few_rights(services):
    for name, one in services.items():
        assert one["security_opt"] == ["no-new-privileges:true"] and one["cap_drop"] == ["ALL"], name
        assert one["mem_limit"] and one["pids_limit"], name
        assert one["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name
    assert {name for name, one in services.items() if "cap_add" in one} == {"postgres", "store"}
    writing = {name for name, one in services.items() if not one.get("read_only")}
    assert writing == {"postgres", "store", "store-copy", "grafana"}


def test_a_secret_is_told_to_who_needs_it_and_a_missing_one_is_refused(services, text):
    asked = set(re.findall(r"\$\{(\w+):\?[^}]+\}", text))
    assert asked == set(SECRETS) | set(DERIVED)
    addresses = {"ADO_BIND", "ADO_BIND_PEOPLE", "ADO_BASE_URL", "ADO_PROMETHEUS_URL"}
    assert set(re.findall(r"(?<!\$)\$\{(\w+)(?::-[^}]*)?\}", text)) == addresses  # no secret has a default
    for secret, holders in (HOLDERS | DERIVED).items():
        told = {name for name, one in services.items() if f"${{{secret}:" in str(one.get("environment", {}))}
        assert told - {"check-secrets"} == holders, secret
    assert all(f"${{{secret}:" in str(services["check-secrets"]["environment"]) for secret in SECRETS)


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
    own = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    environment = {**own, **dict.fromkeys((*SECRETS, *DERIVED), "x1")}
    check = [*command, "-f", "docker-compose.yaml", "--env-file", str(tmp_path / "none.env"), "config"]
    done = subprocess.run(check, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = yaml.safe_load(done.stdout)["services"]
    assert told["mlflow"]["healthcheck"] and "x1@postgres" in str(told["airflow-scheduler"]["environment"])
    for secret in SECRETS:
        less = {key: value for key, value in environment.items() if key != secret}
        done = subprocess.run(check, cwd=repository, env=less, capture_output=True, text=True)
        assert done.returncode != 0 and "docs/control_plane.md" in done.stderr, secret


@pytest.mark.parametrize(("answers", "expected"), [("0", "docker compose up -d"), ("1", "docker-compose up -d")])
@pytest.mark.parametrize("target", [("lock-out", "WORKER=mac2"), ("rotate",)], ids=lambda target: target[0])
def test_make_calls_the_compose_that_is_there(target, answers, expected, repository, tmp_path):
    """A worker is locked out only once the services know of it: with Compose v1 too."""
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\nexit {answers}\n")
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = subprocess.run(
        ["make", "-n", *target], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == expected


@pytest.fixture(scope="module")
def made(repository, tmp_path_factory):
    """What `make secrets` writes."""
    folder = tmp_path_factory.mktemp("secrets")
    make_secrets(folder, "--hosts", "plane.example.org,::1")
    return folder


def make_secrets(folder, *options):
    return fleet_world.make_secrets(folder, *options)


def check_secrets(repository, environment):
    script = str(repository / "include/compose/check_secrets.sh")
    return subprocess.run(
        ["sh", script], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True
    )


def test_made_secrets_are_good_and_stay(made, repository):
    secrets = values(made / ".env")
    assert {*SECRETS, *DERIVED} <= set(secrets)
    assert check_secrets(repository, secrets).returncode == 0
    less = {name: value for name, value in secrets.items() if name != "ALERT_TOKEN"}
    (made / ".env").write_text("".join(f"{name}={value}\n" for name, value in less.items()))
    assert f"1 made, {len(SECRETS) - 1} kept" in make_secrets(made)
    assert values(made / ".env").items() >= less.items() and values(made / ".env")["ALERT_TOKEN"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("POSTGRES_PASSWORD", "", "is missing"),
        ("POSTGRES_PASSWORD", "k3j", "has 3 characters, at least 16"),
        ("POSTGRES_PASSWORD", "Changeme-8293kdjw92", "everybody tries first"),
        ("MLFLOW_DB_PASSWORD", "k2jh3:k4j@h5/k6j7h", "letters and digits only"),
        ("AIRFLOW_ADMIN_PASSWORD", "admin-admin-admin", "everybody tries first"),
        ("AIRFLOW_SIGNING_KEY", "ab" * 600, "repeats a few characters"),
        ("AIRFLOW_SIGNING_KEY", "", "is missing"),
        ("STORE_SECRET_KEY", "minioadmin" * 4, "everybody tries first"),
    ],
)
def test_a_weak_secret_starts_nothing(made, repository, name, value, said):
    done = check_secrets(repository, values(made / ".env") | {name: value})
    assert done.returncode == 1 and said in done.stderr
    assert all(line.startswith(name) for line in done.stderr.splitlines())  # and no other is blamed


def test_the_watching_services_take_their_configs(repository):
    """Read by the real programs; paths of the containers are looked up beside the files."""
    compose = repository / "include" / "compose"
    promtool, amtool = program("promtool", "prometheus"), program("amtool", "prometheus-alertmanager")
    rules = subprocess.run(
        [promtool, "check", "config", "--syntax-only", str(compose / "prometheus.yml")], capture_output=True, text=True
    )
    assert rules.returncode == 0, rules.stderr
    routes = subprocess.run([amtool, "check-config", str(compose / "alertmanager.yml")], capture_output=True, text=True)
    assert routes.returncode == 0, routes.stderr
    for path in (compose / "grafana").rglob("*.yml"):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1


def test_the_bucket_is_made_once(repository, tmp_path):
    """Against a real S3 server."""
    processes, url = fleet_world.Processes(tmp_path), f"http://127.0.0.1:{free_port()}"
    processes.start(
        "store",
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]],
        dict(os.environ),
    )
    try:
        fleet_world.wait_for("the store", fleet_world.answers(url))
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, str(repository / "include/compose/make_bucket.py"), url, "artifacts"],
                env={**os.environ, **keys}, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0 and "bucket artifacts is there" in done.stdout, done.stderr
    finally:
        processes.stop_all()
