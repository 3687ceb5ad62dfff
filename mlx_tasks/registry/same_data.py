"""Are these images of the data set that a registered model was made from?

A dataset is told by where it lies and by a sketch of its images: the K least hashes of their pixels (Broder 1997, a
bottom-k sketch). The same place with other images is a new state of the same set, and so are the same images in another
place, also when some were added. Another place with other images is another data set, and its model another model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.registry.model_name import card_name
from mlx_tasks.registry.names import CHAMPION

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Registry, Version

SOURCE_TAG, SKETCH_TAG, FINGERPRINT_TAG = "mlx_tasks.data_source", "mlx_tasks.data_sketch", "mlx_tasks.dataset"
K, HEX = 128, 12
"""Hashes of a sketch, and hex digits of each: together they fit in one of MLflow's tags."""
SHARED = 0.5
"""Share of the smaller set's images that must stand in the other one."""


@dataclass(frozen=True)
class DataIdentity:
    """What tells a dataset from others.

    Attributes:
        source: where it lies: `card:NAME`, or `folder:/absolute/path`.
        fingerprint: validate's, equal for the very same images, labels and splits.
        images: how many accepted images.
        hashes: the K least of their pixels' hashes, rising; fewer where there are fewer images.
    """

    source: str
    fingerprint: str
    images: int
    hashes: tuple[str, ...]

    @property
    def tags(self) -> dict[str, str]:
        """As a version carries it."""
        sketch = json.dumps({"images": self.images, "hashes": "".join(self.hashes)})
        return {SOURCE_TAG: self.source[:4000], SKETCH_TAG: sketch}


def identity_of_workspace(root: Path, path: str) -> DataIdentity:
    """The identity of work/dataset.  path: `data.path`."""
    import pyarrow.parquet as parquet

    from mlx_tasks.files import read_json

    summary = root / "work" / "dataset" / "summary.json"
    manifest = root / "work" / "dataset" / "manifest.parquet"
    fingerprint = str(read_json(summary).get("fingerprint") or "") if summary.is_file() else ""
    names = set(parquet.read_schema(manifest).names)
    if "pixels_sha256" not in names:
        return DataIdentity(source_of(root, path), fingerprint, 0, ())
    table = parquet.read_table(manifest, columns=["index", "pixels_sha256"])
    accepted = table.filter(table["index"].to_numpy() >= 0)["pixels_sha256"].to_pylist()
    return DataIdentity(source_of(root, path), fingerprint, *sketch(accepted))


def sketch(hashes: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """(how many different hashes, the K least of them, cut to HEX digits)."""
    different = sorted(set(hashes))
    return len(different), tuple(one[:HEX] for one in different[:K])


def source_of(root: Path, path: str) -> str:
    """Where `data.path` lies, the same from every workspace of one checkout.  root: the workspace."""
    named = Path(path).expanduser()
    if named.suffix in (".yaml", ".yml"):
        return f"card:{card_name(root / named)}"
    if named.is_absolute():
        return f"folder:{named.resolve()}"
    inside = (root / named).resolve()
    if not inside.is_relative_to(root.resolve()):
        return f"folder:{inside}"
    return f"folder:{(_checkout(root) / inside.relative_to(root.resolve())).resolve()}"


def _checkout(root: Path) -> Path:
    """The checkout that a workspace is a worktree of; the workspace itself outside git."""
    from mlx_tasks.workspace.git import git

    try:
        common = Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    except UnavailableError:
        return root
    return common.parent if common.name == ".git" else root


def shared_share(ours: DataIdentity, images: int, hashes: Sequence[str]) -> float:
    """Estimated share of the smaller set's images that the other one holds too; 0 where one has no sketch.

    J = |A and B| / |A or B|, from the K least hashes of both;  |A and B| = J (|A| + |B|) / (1 + J).
    """
    mine, theirs = set(ours.hashes), set(hashes)
    if not mine or not theirs or not images:
        return 0.0
    least = sorted(mine | theirs)[:K]
    jaccard = sum(one in mine and one in theirs for one in least) / len(least)
    both = jaccard * (ours.images + images) / (1 + jaccard)
    return min(1.0, both / min(ours.images, images))


def is_same(ours: DataIdentity, tags: Mapping[str, str]) -> bool:
    """Whether a version with these tags was made from the same data set."""
    if tags.get(SOURCE_TAG) == ours.source or (ours.fingerprint and tags.get(FINGERPRINT_TAG) == ours.fingerprint):
        return True
    told = _sketch_of(tags)
    return shared_share(ours, told[0], told[1]) >= SHARED


def check_same(registry: Registry, model: str, ours: DataIdentity) -> None:
    """Raises: DataError where the model has versions, and none of them was made from this data set."""
    versions = with_sources(registry, model)
    if not versions or any(is_same(ours, version.tags) for version in versions):
        return
    known = sorted({version.tags.get(SOURCE_TAG, "unknown images") for version in versions})
    raise DataError(
        f"the registered model {model!r} was made from {', '.join(known)[:400]}; this run's images come from "
        f"{ours.source} and are others, and a model holds versions of one data set: set register.model_name to another "
        f"name, {model}-2 for example; all that the stages before this one made stays"
    )


def other_source_note(workspace: Path, config: Config) -> str:
    """What to say when a run is opened whose images lie elsewhere than its model's; empty where they do not.

    Only the finished dataset can tell whether these are the same images, moved: `register` decides.
    """
    from mlx_tasks.registry.mlflow_registry import Registry
    from mlx_tasks.tracking.rest import tracking_uri

    uri = tracking_uri()
    if uri is None:
        return ""
    name, source = config.register_.model_name, source_of(workspace, config.data.path)
    known = known_sources(Registry(uri), name)
    if not known or source in known:
        return ""
    return (
        f"the registered model {name} was made from {', '.join(sorted(known))[:400]}, this run reads {source}: unless "
        "these are the same images, moved or grown, it will not be registered; or set register.model_name to another"
    )


def known_sources(registry: Registry, name: str) -> set[str]:
    """Where the images of a model's versions lie."""
    return {told for version in with_sources(registry, name) if (told := version.tags.get(SOURCE_TAG))}


def with_sources(registry: Registry, name: str) -> list[Version]:
    """A model's versions, each with a source: of those from before there was one, the champion counts, or the oldest.

    Its run's parameter `data.path` is taken.
    """
    versions = registry.versions(name)
    told = [version for version in versions if SOURCE_TAG in version.tags]
    if told or not versions:
        return told
    oldest = registry.by_alias(name, CHAMPION) or min(versions, key=lambda version: int(version.version))
    path = registry.run_param(oldest.run_id, "data.path") if oldest.run_id else None
    source = {SOURCE_TAG: source_of(Path("/"), path)} if path else {}
    return [replace(oldest, tags=oldest.tags | source)]


def _sketch_of(tags: Mapping[str, str]) -> tuple[int, list[str]]:
    try:
        told: Any = json.loads(tags[SKETCH_TAG])
        text, images = str(told["hashes"]), int(told["images"])
    except (KeyError, TypeError, ValueError):
        return 0, []
    return images, [text[start : start + HEX] for start in range(0, len(text), HEX)]
