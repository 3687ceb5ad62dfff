"""This run beside the champion before it and the versions registered last, kept with what `register` writes.

work/registered/comparison/comparison.json   what `compare` gives, and `why` where there is nothing to compare
work/registered/comparison/RUN.png           the winner's samples of the RUN-th run in it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.comparison.compare import compare
from mlx_tasks.comparison.records import folder_record, mlflow_record
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, read_json, write_json
from mlx_tasks.registry.mlflow_registry import Registry, Version

OTHERS = 3
"""Newest versions that are shown beside the champion before."""


@dataclass(frozen=True)
class Kept:
    """A comparison as it was kept: `compare`'s values, and each run's picture or None.

    Attributes:
        why: the reason where there is no comparison.
    """

    found: dict[str, Any] | None
    pictures: tuple[bytes | None, ...]
    why: str


def write_comparison(
    folder: Path, root: Path, registry: Registry | None, version: Version | None, champion: Version | None
) -> None:
    """Compare the workspace's run with earlier versions of its model.

    folder: made anew; champion: who held the title before `version`; it comes first, and is what the others are held
    against.  A version whose run is gone or was measured by other code is named and left out.
    """
    records, left_out = [], []
    if registry is not None and version is not None:
        newest = sorted(registry.versions(version.name), key=lambda one: -int(one.version))
        others = [one for one in newest if int(one.version) < int(version.version)]
        first = [champion] if champion else []
        rest = [one for one in others if not champion or one.version != champion.version][:OTHERS]
        for one in [*first, *rest]:
            title = f"version {one.version}" + (", champion before" if one in first else "")
            try:
                records.append(mlflow_record(title, str(one.run_id), registry.uri))
            except DataError as error:
                left_out.append(f"{title}: {error}")
    found, why, pictures = None, "", []
    if records:
        records.append(folder_record("this run", root))
        found = compare(records)
        pictures = [record.picture(record.winner["candidate"]) for record in records]
    elif registry is None:
        why = "There is no tracking server, and so no earlier run to compare with."
    elif not left_out:
        why = "The first version of its model: there is nothing to compare with yet."
    else:
        why = f"No earlier version can be compared with: {'; '.join(left_out)}."
    with atomic_folder(folder) as fresh:
        write_json(fresh / "comparison.json", {"found": found, "why": why, "left_out": left_out})
        for index, data in enumerate(pictures):
            if data is not None:
                atomic_write_bytes(fresh / f"{index}.png", data)


def read_comparison(folder: Path) -> Kept:
    """What `write_comparison` kept.  Raises: OSError or ValueError where it did not."""
    told = read_json(folder / "comparison.json")
    runs = told["found"]["runs"] if told["found"] else []
    paths = [folder / f"{index}.png" for index in range(len(runs))]
    return Kept(told["found"], tuple(path.read_bytes() if path.is_file() else None for path in paths), told["why"])
