"""What one network evaluation costs on this machine, by batch, number format and how guidance is run: measured once.

The table depends on the network's shape, the image's size, the chip and MLX's version, and on no weight. So it is kept
under a key of those, in $MLX_TASKS_CACHE/device_costs (by default in the user's cache folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
from mlx.utils import tree_map

from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.samplers.bundle_sampler import bundle_noise
from mlx_tasks.samplers.denoiser import network_denoiser

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

CACHE_VARIABLE = "MLX_TASKS_CACHE"
BATCHES = (1, 4, 16)
DTYPES: dict[str, mx.Dtype] = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
REPEATS = 5
SLOW = 20.0
"""A format is left alone at larger batches once it took this many times as long as float32 at the smallest."""

GuidanceMode = Literal["none", "together", "apart"]


@dataclass(frozen=True)
class EvaluationCost:
    """Milliseconds an image of one denoiser call: the median of the repeats, and their lowest and highest.

    Attributes:
        batch: images in it.
        dtype: number format of weights and activations.
        guidance: none; or both branches, together in one batch of twice the size, or one after the other.
    """

    batch: int
    dtype: str
    guidance: GuidanceMode
    ms: float
    low_ms: float
    high_ms: float


def cost_table(
    bundle: Bundle, chip: str, *, batches: Sequence[int] = BATCHES, again: bool = False
) -> list[EvaluationCost]:
    """The table of this machine, read back where it was measured before.

    again: measure in any case.  Raises: DataError for batches that are none; OSError where it cannot be kept.
    """
    if not batches or min(batches) < 1:
        raise DataError(f"batches must be whole numbers of at least 1, got {list(batches)}")
    path = _path(bundle, chip, batches)
    if not again and path.is_file():
        try:
            return [EvaluationCost(**row) for row in read_json(path)["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a damaged file is measured anew
    rows = measure_table(bundle, batches)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"chip": chip, "mlx": version("mlx"), "rows": [asdict(row) for row in rows]})
    return rows


def measure_table(bundle: Bundle, batches: Sequence[int] = BATCHES) -> list[EvaluationCost]:
    """Time every combination in turn, so that a machine's moods fall on all of them alike.

    The first round is a warm-up. Formats far slower than float32 at the smallest batch are not tried at others.
    """
    modes: tuple[GuidanceMode, ...] = ("none",)
    if bundle.sampler.null_label is not None and bundle.sampler.class_names:
        modes = ("none", "together", "apart")
    models = {name: _cast(bundle.model, dtype) for name, dtype in DTYPES.items()}
    runs: dict[tuple[int, str, GuidanceMode], Callable[[], mx.array]] = {}
    taken: dict[tuple[int, str, GuidanceMode], list[float]] = {}
    for batch in sorted(set(batches)):
        for name in DTYPES:
            if batch > min(batches) and _too_slow(taken, name, min(batches)):
                continue
            for mode in modes:
                runs[batch, name, mode] = _call(bundle, models[name], DTYPES[name], batch, mode)
        for repeat in range(REPEATS + 1):
            for key, run in runs.items():
                if key[0] != batch:
                    continue
                started = time.perf_counter()
                mx.eval(run())
                if repeat:
                    taken.setdefault(key, []).append((time.perf_counter() - started) * 1000 / batch)
    return [EvaluationCost(*key, statistics.median(ms), min(ms), max(ms)) for key, ms in taken.items()]


def fastest(rows: Sequence[EvaluationCost], batch: int, *, guided: bool) -> EvaluationCost:
    """The cheapest way of one call at a batch, or at the nearest one that was measured.

    Raises: DataError where no row is of that kind.
    """
    fitting = [row for row in rows if (row.guidance != "none") == guided]
    if not fitting:
        raise DataError("the table holds no guided calls: this bundle has no empty label")
    nearest = min({row.batch for row in fitting}, key=lambda known: abs(known - batch))
    return min((row for row in fitting if row.batch == nearest), key=lambda row: row.ms)


def _too_slow(taken: dict[tuple[int, str, GuidanceMode], list[float]], name: str, batch: int) -> bool:
    own, plain = (statistics.median(taken[batch, dtype, "none"]) for dtype in (name, "float32"))
    return own > SLOW * plain


def _call(
    bundle: Bundle, model: UNet2DModel, dtype: mx.Dtype, batch: int, mode: GuidanceMode
) -> Callable[[], mx.array]:
    classes, empty = len(bundle.sampler.class_names), bundle.sampler.null_label
    labels = mx.array([i % classes for i in range(batch)], dtype=mx.int32) if classes else None
    guidance = Guidance(1.0 if mode == "none" else 2.0, batched=mode == "together")
    denoise = network_denoiser(model, bundle.schedule, labels, guidance, empty)
    x = bundle_noise(bundle, 0, batch).astype(dtype)
    mx.eval(x)
    return lambda: denoise(x, 1.0)


def _cast(model: UNet2DModel, dtype: mx.Dtype) -> UNet2DModel:
    """The same network in another number format; the model itself where it is of it already."""
    if dtype == mx.float32:
        return model
    copied = UNet2DModel(model.config)
    copied.update(tree_map(lambda array: array.astype(dtype), model.parameters()))
    mx.eval(copied.parameters())
    return copied


def _path(bundle: Bundle, chip: str, batches: Sequence[int]) -> Path:
    told: dict[str, Any] = {
        "unet": bundle.model.config.to_dict(),
        "image": [bundle.sampler.resolution, bundle.sampler.channels, len(bundle.sampler.class_names)],
        "machine": [chip, version("mlx"), os.environ.get("MLX_TASKS_THREADS", "")],
        "batches": sorted(set(batches)),
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx-tasks"
    return Path(os.environ.get(CACHE_VARIABLE) or default) / "device_costs" / f"{key}.json"
