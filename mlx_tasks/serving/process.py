"""Run one `mlx-tasks` command in a fresh process and take what it printed. Light: a DAG's tasks import it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

logger = logging.getLogger(__name__)


class CommandFailed(Exception):
    """The command ended with another exit code than 0.

    Attributes:
        code: its exit code (mlx_tasks/errors.py).
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(f"exit code {code}: {message}")


def run_command(*arguments: str) -> Any:
    """Run `python -m mlx_tasks ARGUMENTS`; the JSON of its last line on stdout. Its stderr goes to the log.

    Tasks of Airflow are forks of a long process and MLX survives no fork, so whatever computes runs here.
    Raises: CommandFailed with its last words.
    """
    command = [sys.executable, "-m", "mlx_tasks", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    for line in done.stderr.splitlines():
        logger.info("%s", line)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()] or lines or ["it said nothing"]
        raise CommandFailed(done.returncode, words[-1])
    return json.loads(lines[-1])
