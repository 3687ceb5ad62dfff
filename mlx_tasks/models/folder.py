"""A U-Net on disk: diffusers' folder of config.json and diffusion_pytorch_model.safetensors, under its weight names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, write_json
from mlx_tasks.models.digests import check_digests, listed, write_digests
from mlx_tasks.models.json_file import read_mapping
from mlx_tasks.models.limits import check_memory, weights_bytes
from mlx_tasks.models.safetensors_header import Entry, read_header
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_VERSION = "0.42.1"
"""The diffusers whose files these are; written where diffusers writes its own version."""

DTYPES = ("F32", "F16", "BF16")
"""What weights may be stored as, in safetensors' names; they are computed with as float32."""

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

# Names of attention's layers in checkpoints from before diffusers 0.17, which still reads them too.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def save_unet(model: UNet2DModel, folder: Path) -> None:
    """Put `folder` in place with the network as diffusers' `save_pretrained` would, and the digest of each file.

    Raises: DataError for weights that are not finite; OSError, which leaves the old folder.
    """
    with atomic_folder(folder) as fresh:
        write_unet(model, model.config, fresh)
        write_digests(fresh)


def load_unet(folder: Path) -> UNet2DModel:
    """The network of a folder, its weights evaluated, in float32.

    Raises: DataError where the folder holds another network, an unsupported config, a pickle, weights whose names,
        shapes or types are not the config's, values that are not finite, or bytes that differ from their digest.
    """
    check_digests(folder)
    return read_unet(folder)


def write_unet(model: UNet2DModel, config: UNet2DConfig, folder: Path) -> None:
    """Write the two files into a folder that is not in place yet."""
    from safetensors.numpy import save

    weights = {name: _to_disk(value) for name, value in _parameters(model).items()}
    broken = sorted(name for name, value in weights.items() if not np.isfinite(value).all())
    if broken:
        raise DataError(f"weights must be finite, these are not: {listed(broken)}; save an earlier checkpoint")
    notes = {"_class_name": "UNet2DModel", "_diffusers_version": DIFFUSERS_VERSION}
    write_json(folder / CONFIG, {**notes, **config.to_dict()})
    atomic_write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))


def read_unet(folder: Path) -> UNet2DModel:
    """`load_unet` without the digests.

    What the file says that it holds is compared with the config before one weight is read.
    """
    config = UNet2DConfig.from_dict(read_mapping(folder / CONFIG))
    model = UNet2DModel(config)  # lazy: it takes no memory yet
    path = _weights_file(folder)
    _check_header(path, read_header(path), {name: value.shape for name, value in _parameters(model).items()})
    weights = _read_weights(path)
    finite = {name: mx.isfinite(value).all() for name, value in weights.items()}
    mx.eval(weights, finite)
    broken = sorted(name for name, good in finite.items() if not good.item())
    if broken:
        raise DataError(f"{path} has values that are not finite in {listed(broken)}; write it again")
    model.update(tree_unflatten(list(weights.items())))
    return model


def _check_header(path: Path, header: dict[str, Entry], expected: dict[str, tuple[int, ...]]) -> None:
    """Raises: DataError where a file holds other names, shapes or types than expected, or more than memory has."""
    wrong = [f"{name} {one.dtype}" for name, one in header.items() if one.dtype not in DTYPES]
    if wrong:
        raise DataError(f"{path} must hold {', '.join(DTYPES)} only, got {listed(wrong)}; convert it to float32")
    shapes = {_todays(name): _our_shape(one.shape) for name, one in header.items()}
    if len(shapes) != len(header):
        raise DataError(f"{path} names a weight twice, by today's name and by one from before diffusers 0.17")
    missing, extra = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    if missing or extra:
        raise DataError(
            f"{path} does not hold the network of its {CONFIG}: missing {listed(missing)}; not expected {listed(extra)}"
        )
    other = [f"{n} {shapes[n]} for {tuple(s)}" for n, s in expected.items() if shapes[n] != tuple(s)]
    if other:
        raise DataError(f"{path} has other shapes (H and W before I) than its {CONFIG}: {listed(other)}")
    count = sum(one.size for one in header.values())
    check_memory(weights_bytes(count), f"the {count:,} weights of {path}")


def _parameters(model: UNet2DModel) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def _to_disk(value: mx.array) -> np.ndarray:
    """Torch's layout, contiguous; numpy knows no bfloat16, so that becomes float32."""
    if value.dtype == mx.bfloat16:
        value = value.astype(mx.float32)
    array = np.array(value)
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.is_file():
        return path
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise DataError(
            f"{folder} holds {listed(pickles)}, pickles, which can run code when they are read: convert them to "
            f"{WEIGHTS} with diffusers' save_pretrained(safe_serialization=True) where they are trusted"
        )
    parts = sorted(file.name for file in folder.glob(f"{Path(WEIGHTS).stem}*.safetensors"))
    if parts:
        raise DataError(
            f"{folder} must hold its weights in one {WEIGHTS}, it holds {listed(parts)}: load it with diffusers (with "
            "variant= for another name than its own) and save_pretrained(max_shard_size='100GB')"
        )
    raise DataError(f"{folder} has no {WEIGHTS}; it holds {listed(sorted(f.name for f in folder.iterdir()))}")


def _read_weights(path: Path) -> dict[str, mx.array]:
    """Arrays by today's names, in our layout, float32, lazy."""
    weights = {}
    try:
        arrays: Any = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path} is not a safetensors file: {error}") from None
    for name, value in arrays.items():
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        weights[_todays(name)] = mx.contiguous(value.astype(mx.float32))
    return weights


def _todays(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _our_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(O, I, H, W) as (O, H, W, I); any other as it is."""
    if len(shape) != 4:
        return shape
    outputs, inputs, height, width = shape
    return outputs, height, width, inputs
