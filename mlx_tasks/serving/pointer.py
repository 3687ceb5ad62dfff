"""The pointer file: which bundle serves, and which one served before it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json


@dataclass(frozen=True)
class Pointer:
    """One bundle to serve.

    Attributes:
        name: of the model.
        version: in the registry, or empty for a bare folder.
        bundle: its folder.
        digest: of the bundle, or empty where nobody has read it yet.
        token: of the deployment that put it here.
    """

    name: str
    version: str
    bundle: str
    digest: str = ""
    token: str = ""


def read_pointer(path: Path) -> Pointer:
    """What a pointer file names.  Raises: DataError where it names nothing yet, or cannot be read."""
    return _pointer(path, _read(path).get("now"))


def read_previous(path: Path) -> Pointer | None:
    """What served before, or None."""
    values = _read(path)
    return _pointer(path, values["before"]) if values.get("before") else None


def write_pointer(path: Path, now: Pointer, before: Pointer | None) -> None:
    """Let the file name another bundle, in one rename."""
    write_json(path, {"now": asdict(now), "before": asdict(before) if before else None})


def _read(path: Path) -> dict:
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise DataError(f"nothing is deployed at {path}: `mlx-tasks deploy swap` first") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no pointer file: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is no pointer file: it holds {type(values).__name__}")
    return values


def _pointer(path: Path, values: object) -> Pointer:
    try:
        return Pointer(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(f"{path} is no pointer file: {error}") from None
