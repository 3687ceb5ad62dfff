"""From a version on this disk to something that draws: read, checked, tried out, measured."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle
    from mlx_tasks.serving.library import Served
    from mlx_tasks.serving.worker import Loaded

logger = logging.getLogger(__name__)


def load(served: Served, most_rows: int = 32, measured: tuple[int, bool] | None = None) -> Loaded:
    """A version, ready to draw.

    measured: what `engine.exact_multiple` found where the version was tried out before (`trial`); it is tried out and
        measured here where none is given.
    Raises: DataError where it may not serve.
    """
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.serving.checks import check_before_serving
    from mlx_tasks.serving.engine import Engine, Plan
    from mlx_tasks.serving.worker import Loaded, Model

    folder = Path(served.folder)
    bundle = read_bundle(folder)
    if served.digest and bundle.digest != served.digest:
        raise DataError(f"{folder} has digest {bundle.digest[:12]}, expected {served.digest[:12]}")
    rows = _rows(bundle, most_rows)
    if measured is None:
        check_before_serving(folder, bundle, rows)
    sampler = bundle.sampler
    engine, branches = Engine(bundle, rows, measured), Plan.own(bundle).branches
    model = Model(
        served.name,
        served.version or bundle.digest[:12],
        bundle.digest,
        tuple(sampler.class_names),
        sampler.resolution,
        sampler.channels,
        sampler.nfe,
        {name: branches * level.calls for name, level in sampler.levels.items()},
        sampler.null_label is not None,
        engine.exact,
        time.time(),
    )
    if not engine.exact:
        logger.warning("exact=false model=%s: images of one seed may differ by a grey level between batches", model.id)
    return Loaded(model, engine, served.folder)


def _rows(bundle: Bundle, most_rows: int) -> int:
    """Rows of one network call that there is memory for.  Raises: DataError where too few are."""
    from mlx.utils import tree_flatten

    from mlx_tasks.models.limits import rows_that_fit

    flat: Any = tree_flatten(bundle.model.parameters())
    parameters = sum(value.size for _, value in flat)
    rows = rows_that_fit(bundle.model.config, bundle.sampler.resolution, most_rows, parameters)
    if rows < most_rows:
        logger.info("rows=%d of %d: what one network call has memory for", rows, most_rows)
    return rows
