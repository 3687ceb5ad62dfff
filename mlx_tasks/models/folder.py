"""A U-Net on disk: diffusers' folder of config.json and diffusion_pytorch_model.safetensors, under its weight names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, read_json, sha256_file, write_json
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DIGESTS = "digests.json"
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
        raise DataError(f"weights must be finite, these are not: {_listed(broken)}; save an earlier checkpoint")
    notes = {"_class_name": "UNet2DModel", "_diffusers_version": DIFFUSERS_VERSION}
    write_json(folder / CONFIG, {**notes, **config.to_dict()})
    atomic_write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))


def read_unet(folder: Path) -> UNet2DModel:
    """`load_unet` without the digests."""
    config = UNet2DConfig.from_dict(read_mapping(folder / CONFIG))
    model = UNet2DModel(config)
    weights = _read_weights(_weights_file(folder))
    expected = {name: value.shape for name, value in _parameters(model).items()}
    missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or extra:
        raise DataError(
            f"{folder / WEIGHTS} does not hold the network of its {CONFIG}: "
            f"missing {_listed(missing)}; not expected {_listed(extra)}"
        )
    wrong = [f"{n} {tuple(weights[n].shape)} for {tuple(s)}" for n, s in expected.items() if weights[n].shape != s]
    if wrong:
        raise DataError(f"{folder / WEIGHTS} has other shapes (H and W before I) than its {CONFIG}: {_listed(wrong)}")
    finite = {name: mx.isfinite(value).all() for name, value in weights.items()}
    mx.eval(weights, finite)
    broken = sorted(name for name, good in finite.items() if not good.item())
    if broken:
        raise DataError(f"{folder / WEIGHTS} has values that are not finite in {_listed(broken)}; write it again")
    model.update(tree_unflatten(list(weights.items())))
    return model


def write_digests(folder: Path, exclude: frozenset[str] = frozenset()) -> None:
    """Write digests.json: the SHA-256 of every file under `folder` but the excluded ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    digests = {name: sha256_file(path) for name, path in names.items() if name not in {DIGESTS, *exclude}}
    write_json(folder / DIGESTS, {"algorithm": "sha256", "files": digests})


def check_digests(folder: Path) -> None:
    """Compare the files with digests.json, if the folder has one (diffusers' own folders do not).

    Raises: DataError listing the files that are gone or changed.
    """
    path = folder / DIGESTS
    if not path.is_file():
        return
    files = read_mapping(path).get("files")
    if not isinstance(files, dict) or any(".." in Path(name).parts for name in files):
        raise DataError(f"{path} must map relative file names to digests, got {files!r:.80}")
    changed = [n for n, digest in files.items() if not (folder / n).is_file() or sha256_file(folder / n) != digest]
    if changed:
        raise DataError(f"{folder}: {_listed(changed)} differ from {DIGESTS}; copy the folder again from where it came")


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object.  Raises: DataError if the file is missing, is no JSON, or holds another kind of value."""
    try:
        value = read_json(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; is this a diffusers folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


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
            f"{folder} holds {_listed(pickles)}, pickles, which can run code when they are read: convert them to "
            f"{WEIGHTS} with diffusers' save_pretrained(safe_serialization=True) where they are trusted"
        )
    raise DataError(f"{folder} has no {WEIGHTS}; it holds {_listed(sorted(f.name for f in folder.iterdir()))}")


def _read_weights(path: Path) -> dict[str, mx.array]:
    """Arrays by today's names, in our layout, float32, lazy."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    except SafetensorError as error:
        raise DataError(f"{path} is not a safetensors file: {error}") from None
    wrong = [f"{name} {kind}" for name, kind in types.items() if kind not in DTYPES]
    if wrong:
        raise DataError(f"{path} must hold {', '.join(DTYPES)} only, got {_listed(wrong)}; convert it to float32")
    weights = {}
    arrays: Any = mx.load(str(path))
    for name, value in arrays.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        weights[name] = mx.contiguous(value.astype(mx.float32))
    return weights


def _listed(names: list[str], most: int = 8) -> str:
    if not names:
        return "nothing"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
