"""Facts about include/compose/backup.sh and restore.sh, with a real PostgreSQL, a real S3 server, pg_dump and rclone.

Only the containers are missing (`compose_without_engine`); benchmarks/compose_trial.py has them, and destroys volumes.
"""

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import boto3
import psycopg2
import pytest
from debian import program
from fleet_world import Postgres, Processes, answers, wait_for
from ports import free_port

DATABASES = ("airflow", "mlflow")
KEY = "AIRFLOW_FERNET_KEY"


@cache
def client_of(store: str):
    return boto3.client(
        "s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


@dataclass
class Plane:
    """A checkout's scripts over two databases, a bucket and a folder of logs."""

    root: Path
    postgres: Postgres
    store: str
    logs: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PG", "RCLONE_"))}
        return {
            **kept,
            "ADO_COMPOSE": f"{sys.executable} {Path(__file__).with_name('compose_without_engine.py')}",
            "COMPOSE_CALLS": str(self.root / "calls"),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.postgres.port),
            "PGPASSWORD": "fleet",
            "PGUSER": "postgres",
            "AIRFLOW_DB_PASSWORD": "airflows",
            "MLFLOW_DB_PASSWORD": "mlflows",
            "STORE_URL": self.store,
            "AIRFLOW_LOGS": str(self.logs),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "RCLONE_CONFIG": "",
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Other",
            "RCLONE_CONFIG_STORE_ENDPOINT": self.store,
            "RCLONE_CONFIG_STORE_REGION": "us-east-1",
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": "key",
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": "secret",
        }

    def run(self, script: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "include/compose" / script), *words],
            env=self.environment | more, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def backup(self) -> Path:
        done = self.run("backup.sh")
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.split(":")[0])

    def sql(self, database: str, statement: str) -> list[tuple]:
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.postgres.port, user="postgres", password="fleet", dbname=database
        )
        connection.autocommit = True
        try:
            cursor = connection.cursor()
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def client(self):
        return client_of(self.store)

    def objects(self) -> dict[str, bytes]:
        listed = self.client().list_objects_v2(Bucket="artifacts").get("Contents", [])
        return {
            one["Key"]: self.client().get_object(Bucket="artifacts", Key=one["Key"])["Body"].read() for one in listed
        }

    def content(self) -> dict:
        """Everything that a backup must bring back."""
        rows = {name: self.sql(name, "SELECT id, told FROM runs ORDER BY id") for name in DATABASES}
        logs = {path.name: path.read_text() for path in sorted(self.logs.rglob("*.log"))}
        return {**rows, "objects": self.objects(), "logs": logs}

    def empty(self) -> None:
        """As fresh volumes are: two databases without a table, no bucket, no log."""
        for name in DATABASES:
            for found in self.sql("postgres", f"SELECT datname FROM pg_database WHERE datname LIKE '{name}%'"):
                self.sql("postgres", f"DROP DATABASE {found[0]}")
            self.sql("postgres", f"CREATE DATABASE {name}")
        for bucket in self.client().list_buckets()["Buckets"]:
            for one in self.client().list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
                self.client().delete_object(Bucket=bucket["Name"], Key=one["Key"])
            self.client().delete_bucket(Bucket=bucket["Name"])
        shutil.rmtree(self.logs)
        self.logs.mkdir()

    def fill(self) -> None:
        for name in DATABASES:
            self.sql(name, "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('a1')")
            self.sql(name, "CREATE TABLE runs (id serial PRIMARY KEY, told bytea)")
            self.sql(name, f"INSERT INTO runs (told) VALUES ('\\x00ff'), ('{name}')")
        self.client().create_bucket(Bucket="artifacts")
        for key, body in {"dvc/files/md5/ab/cd": b"\x00\x01" * 500, "mlflow/1/a name+with:signs.json": b"{}"}.items():
            self.client().put_object(Bucket="artifacts", Key=key, Body=body)
        (self.logs / "dag_id=x").mkdir()
        (self.logs / "dag_id=x" / "attempt=1.log").write_text("a line\n")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    program("rclone", "rclone")
    processes, postgres = Processes(tmp_path_factory.mktemp("servers")), Postgres()
    store = f"http://127.0.0.1:{free_port()}"
    try:
        postgres.start(processes)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", store.rpartition(":")[2]]
        processes.start("store", command, dict(os.environ))
        wait_for("the store", answers(store))
        yield postgres, store
    finally:
        processes.stop_all()
        shutil.rmtree(postgres.folder, ignore_errors=True)


@pytest.fixture
def plane(servers, repository, tmp_path):
    """A filled control plane."""
    root = tmp_path / "checkout"
    shutil.copytree(repository / "include/compose", root / "include/compose")
    (root / ".env").write_text(f"{KEY}=the-key-of-this-plane\nPOSTGRES_PASSWORD=never-in-a-backup\n")
    (tmp_path / "logs").mkdir()
    plane = Plane(root, *servers, tmp_path / "logs")
    plane.empty()
    plane.fill()
    return plane


def folders(plane: Plane) -> list[Path]:
    return [path for path in (plane.root / "backups").iterdir() if path.is_dir()]


def test_what_was_destroyed_comes_back(plane):
    before = plane.content()
    assert len(before["objects"]) == 2 and before["logs"]
    made = plane.backup()
    plane.empty()
    done = plane.run("restore.sh", str(made))
    assert done.returncode == 0, done.stderr
    assert plane.content() == before
    calls = (plane.root / "calls").read_text().splitlines()
    stopped = next(place for place, call in enumerate(calls) if call.startswith("stop airflow-api-server"))
    assert stopped < next(place for place, call in enumerate(calls) if "pg_restore" in call)
    assert calls[-1] == "up --detach"  # and all is started at the end
    assert {row[0] for row in plane.sql("postgres", "SELECT datname FROM pg_database")} >= set(DATABASES)
    assert not plane.sql("postgres", "SELECT 1 FROM pg_database WHERE datname LIKE '%_restored'")


def test_the_databases_come_before_the_bucket(plane):
    """So that every object which a dump names is in the copy."""
    plane.backup()
    calls = (plane.root / "calls").read_text()
    assert calls.index("pg_dump") < calls.rindex("pg_dump") < calls.index("store-copy")


def test_a_backup_is_for_its_owner_alone_and_holds_no_secret(plane):
    made = plane.backup()
    files = [path for path in made.rglob("*") if path.is_file()]
    assert {path.name for path in made.iterdir()} == {
        "airflow.dump", "mlflow.dump", "store", "logs.tar.gz", "backup.txt", "SHA256SUMS"
    }  # fmt: skip
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    for secret in (b"the-key-of-this-plane", b"never-in-a-backup"):
        assert not any(secret in path.read_bytes() for path in files)
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=made).returncode == 0
    assert len((made / "SHA256SUMS").read_text().splitlines()) == len(files) - 1


@pytest.mark.parametrize("moment", ["pg_dump --username postgres --format custom mlflow", "store-copy", "SHOW"])
def test_a_backup_that_is_killed_leaves_nothing_that_looks_like_one(plane, moment):
    done = plane.run("backup.sh", KILL_AT=moment)
    assert done.returncode in (-9, 137)  # 137: the part of the script that was killed was a subshell
    assert all(path.name.startswith(".unfinished-") for path in folders(plane))
    for path in folders(plane):
        refused = plane.run("restore.sh", str(path))
        assert refused.returncode == 1 and "no finished backup" in refused.stderr
    made = plane.backup()
    assert folders(plane) == [made]  # and the next one clears up


def test_a_failed_dump_leaves_nothing(plane):
    plane.sql("postgres", "DROP DATABASE mlflow")
    done = plane.run("backup.sh")
    assert done.returncode == 1 and "no dump of mlflow" in done.stderr
    assert folders(plane) == []


def test_what_is_there_is_not_overwritten_unless_told(plane):
    made, before = plane.backup(), plane.content()
    plane.sql("airflow", "INSERT INTO runs (told) VALUES ('later')")
    plane.client().put_object(Bucket="artifacts", Key="later", Body=b"later")
    later = plane.content()
    done = plane.run("restore.sh", str(made))
    assert done.returncode == 1 and "the database airflow holds 2 tables: --replace" in done.stderr
    assert plane.content() == later and "stop" not in (plane.root / "calls").read_text()
    done = plane.run("restore.sh", str(made), "--replace")
    assert done.returncode == 0, done.stderr
    assert plane.content() == before


def test_objects_alone_are_not_overwritten_either(plane):
    made = plane.backup()
    for name in DATABASES:
        plane.sql("postgres", f"DROP DATABASE {name}")
        plane.sql("postgres", f"CREATE DATABASE {name}")
    done = plane.run("restore.sh", str(made))
    assert done.returncode == 1 and "the bucket artifacts holds objects: --replace" in done.stderr


EXCHANGE = "psql --username postgres --dbname postgres --no-psqlrc --quiet --set"


@pytest.mark.parametrize("moment", ["mlflow_restored --exit-on-error", "store-copy --quiet copy", EXCHANGE])
def test_a_restore_that_is_killed_changes_nothing_and_may_be_run_again(plane, moment):
    made, before = plane.backup(), plane.content()
    for name in DATABASES:
        plane.sql(name, "INSERT INTO runs (told) VALUES ('later')")
    later = plane.content()
    assert plane.run("restore.sh", str(made), "--replace", KILL_AT=moment).returncode != 0
    assert plane.content() == later
    done = plane.run("restore.sh", str(made), "--replace")
    assert done.returncode == 0, done.stderr
    assert plane.content() == before


@pytest.mark.parametrize("name", ["airflow.dump", "store/dvc/files/md5/ab/cd"])
def test_a_damaged_backup_is_refused_before_anything_happens(plane, name):
    made, before = plane.backup(), plane.content()
    content = bytearray((made / name).read_bytes())
    content[len(content) // 2] ^= 1
    (made / name).write_bytes(content)
    (plane.root / "calls").unlink()
    done = plane.run("restore.sh", str(made), "--replace")
    assert done.returncode == 1 and "is damaged" in done.stderr and name in done.stderr
    assert not (plane.root / "calls").exists() and plane.content() == before


def test_a_missing_object_is_damage_too(plane):
    made = plane.backup()
    (made / "store/dvc/files/md5/ab/cd").unlink()
    done = plane.run("restore.sh", str(made), "--replace")
    assert done.returncode == 1 and "is damaged" in done.stderr


def test_another_fernet_key_is_refused_by_name(plane):
    made = plane.backup()
    (plane.root / ".env").write_text(f"{KEY}=another\n")
    plane.empty()
    done = plane.run("restore.sh", str(made))
    assert done.returncode == 1 and KEY in done.stderr and "--other-key" in done.stderr
    assert plane.run("restore.sh", str(made), "--other-key").returncode == 0


def test_two_backups_at_once_are_one(plane):
    (plane.root / "backups").mkdir()
    held = subprocess.Popen(["flock", str(plane.root / "backups/.lock"), "sleep", "60"])
    try:
        wait_for("the lock", lambda: subprocess.run(["flock", "-n", plane.root / "backups/.lock", "true"]).returncode)
        done = plane.run("backup.sh")
        assert done.returncode == 1 and "another backup is being written" in done.stderr
    finally:
        held.terminate()
        held.wait()


def test_without_env_nothing_is_tried(plane):
    (plane.root / ".env").unlink()
    for script, words in (("backup.sh", ()), ("restore.sh", ("somewhere",))):
        done = plane.run(script, *words)
        assert done.returncode == 1 and "no .env in" in done.stderr
