"""A bundle with other steps: what depends on them is made again, the rest is taken along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.files import atomic_write_bytes
from mlx_tasks.models.bundle import read_bundle, write_bundle
from mlx_tasks.models.digests import write_digests_beside

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Sampler

CARD = "README.md"


def put_sampler(folder: Path, out: Path, sampler: Sampler, notes: dict[str, Any]) -> None:
    """Write the bundle of `folder` with another sampler to `out`, which may be the same folder: whole or not at all.

    notes go into lineage.json under "optimized". A reference for monitoring is drawn again, since its images come from
    the steps; the model card is taken along.
    Raises: DataError as `read_bundle` and `write_bundle`.
    """
    from mlx_tasks.registry.reference import FOLDER, read_reference, redraw, write_reference

    bundle = read_bundle(folder)
    card = (folder / CARD).read_bytes() if (folder / CARD).is_file() else None
    reference = read_reference(folder) if (folder / FOLDER).is_dir() else None
    write_bundle(out, bundle.model, bundle.schedule, sampler, {**(bundle.lineage or {}), "optimized": notes})
    if card is not None:
        atomic_write_bytes(out / CARD, card)
        write_digests_beside(out)
    if reference is not None:
        write_reference(out, redraw(reference, read_bundle(out)))
