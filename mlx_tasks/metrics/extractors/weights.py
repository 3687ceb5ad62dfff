"""Published weights: where they may lie, how they are read without running anything in them, what is said otherwise."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_tasks.errors import DataError

VARIABLE = "MLX_TASKS_WEIGHTS"
"""Names a folder that holds weights files, or one folder for each of them."""


@dataclass(frozen=True)
class Source:
    """A published set of weights.

    Attributes:
        name: of the extractor, and of the folder that it may have under $MLX_TASKS_WEIGHTS.
        files: names under which the weights are published, the best first.
        origin: where they are published, in words.
        hub: repository on the Hugging Face hub whose cache may hold them, or "".
    """

    name: str
    files: tuple[str, ...]
    origin: str
    hub: str = ""


def find_weights(source: Source, path: Path | str | None = None) -> Path:
    """The file: a given one, or one of a given folder, of $MLX_TASKS_WEIGHTS, or of the Hugging Face cache.

    Nothing is downloaded.  Raises: DataError saying which file goes where.
    """
    if path is not None:
        given = Path(path).expanduser()
        if given.is_file():
            return given
        found = _in_folder(given, source.files)
        if found is None:
            raise DataError(f"{given} is not a file and holds none of {', '.join(source.files)}: {_advice(source)}")
        return found
    root = os.environ.get(VARIABLE)
    if root:
        for folder in (Path(root) / source.name, Path(root)):
            found = _in_folder(folder, source.files)
            if found is not None:
                return found
    if source.hub:
        from huggingface_hub import try_to_load_from_cache

        for name in source.files:
            cached = try_to_load_from_cache(source.hub, name)
            if isinstance(cached, str):
                return Path(cached)
    raise DataError(f"no weights of {source.name} are on this machine: {_advice(source)}")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, float32, from safetensors or torch's zip format; no code in the file is run.

    A hash in the file's name (`vgg16-397923af.pth`) must begin the file's SHA-256.
    Raises: DataError for a file that is neither, or whose hash does not fit.
    """
    _check_hash(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays: Mapping[str, np.ndarray] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a safetensors file: {error}") from None
        return {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.detach().float().numpy() for name, value in state.items() if torch.is_tensor(value)}
    except (pickle.UnpicklingError, RuntimeError, ValueError, AttributeError, EOFError, OSError) as error:
        raise DataError(f"{path} holds no plain table of weights ({str(error)[:120]}): use safetensors") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_names(
    weights: Mapping[str, np.ndarray],
    expected: Mapping[str, Sequence[int]],
    path: Path | str,
    ignored: tuple[str, ...] = (),
) -> None:
    """Raises: DataError listing what is missing, left over (but for names with `ignored` ends), or of another shape."""
    missing = sorted(set(expected) - set(weights))
    extra = sorted(n for n in set(weights) - set(expected) if not n.endswith(ignored or ("\0",)))
    wrong = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != tuple(shape)
    ]
    told = [
        f"{word} {_few(names)}" for word, names in (("lacks", missing), ("also has", extra), ("has", wrong)) if names
    ]
    if told:
        raise DataError(f"{path} does not hold this network's weights: it {'; '.join(told)}")


def _in_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _advice(source: Source) -> str:
    hub = f", or have {source.hub} in the Hugging Face cache" if source.hub else ""
    place = f"put it into ${VARIABLE}/{source.name}/, or give its path"
    return f"get {source.files[0]} ({source.origin}) and {place}{hub}"


def _check_hash(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"no file at {path}")
    stem, _, prefix = path.stem.rpartition("-")
    if path.suffix == ".pth" and stem and len(prefix) == 8 and set(prefix) <= set("0123456789abcdef"):
        digest = file_digest(path)
        if not digest.startswith(prefix):
            raise DataError(
                f"{path.name} should have a SHA-256 that begins with {prefix}, it begins {digest[:8]}: get it again"
            )


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
