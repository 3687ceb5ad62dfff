"""Stands where `docker compose` stands for backup.sh and restore.sh: the same programs, without containers.

PostgreSQL's programs reach the server that PGHOST and PGPORT name, rclone the store of STORE_URL, and the folder of
Airflow's logs is AIRFLOW_LOGS. What was asked of Compose itself is a line in COMPOSE_CALLS.  KILL_AT names a word: the
call that holds it kills the script that made it instead, with SIGKILL.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    if (word := os.environ.get("KILL_AT")) and word in " ".join(words):
        os.kill(os.getppid(), signal.SIGKILL)
        return 137
    with Path(os.environ["COMPOSE_CALLS"]).open("a") as calls:
        calls.write(" ".join(words) + "\n")
    if words[0] == "exec":
        return run(words[3:] if words[2] == "postgres" else at_logs(words[3:]))
    if words[0] == "run":
        return run_service(words)
    assert words[0] in ("up", "stop"), words
    return 0


def run_service(words: list[str]) -> int:
    if "store-copy" in words:
        folder = words[words.index("--volume") + 1].removesuffix(":/backup")
        return run(["rclone", *(w.replace("/backup", folder, 1) for w in words[words.index("store-copy") + 1 :])])
    if "airflow-init" in words:
        return run(["tar", *at_logs(words[words.index("airflow-init") + 1 :])])
    if words[-1] == "postgres-init":
        return run(["sh", "include/compose/init_postgres.sh"])
    assert words[-1] == "store-init", words
    return run([sys.executable, "include/compose/make_bucket.py", os.environ["STORE_URL"], "artifacts"])


def at_logs(words: list[str]) -> list[str]:
    return [word.replace("/opt/airflow/logs", os.environ["AIRFLOW_LOGS"]) for word in words]


def run(words: list[str]) -> int:
    return subprocess.run(words).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
