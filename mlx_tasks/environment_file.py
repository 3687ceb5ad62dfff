"""A file of settings and secrets, one NAME=VALUE a line, for its owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from mlx_tasks.errors import DataError
from mlx_tasks.trust import believe


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=VALUE lines; empty ones and those that begin with # are skipped, quotes around a value fall away.

    Raises: DataError for a file that is missing, that others may read, or with a line that is none of these.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DataError(f"{path} holds secrets and others may read it: chmod 600 {path}")
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip().isidentifier():
            raise DataError(f"line {number} of {path} must be NAME=VALUE")
        values[name.strip()] = value.strip().strip("\"'")
    return values


def take_env_file(path: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Put a file's settings into this process' environment; what is set there already stays.

    The authority that it names is believed from then on.
    """
    for name, value in read_env_file(path).items():
        if name not in environment:
            os.environ[name] = value
    believe(os.environ)
