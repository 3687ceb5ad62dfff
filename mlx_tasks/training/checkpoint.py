"""Checkpoints that are whole or absent: one folder a step, written under a temporary name and then renamed.

`step_00000100/` holds `arrays.safetensors`, `state.json` and `digest` (the SHA-256 of both). Reading checks the digest,
so a folder that was cut short, lost a file or rotted is never taken for a good one. The last two are kept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlx_tasks.errors import CheckpointError
from mlx_tasks.files import atomic_folder, flush_to_disk

logger = logging.getLogger(__name__)

KEPT = 2
_ARRAYS, _STATE, _DIGEST = "arrays.safetensors", "state.json", "digest"
_PREFIX = "step_"
_BFLOAT16 = "bfloat16:"


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint.

    Attributes:
        step: optimiser steps done when it was written.
        arrays: evaluated arrays by name.
        state: the JSON value saved beside them.
    """

    step: int
    arrays: dict[str, mx.array]
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, arrays: dict[str, mx.array], state: dict[str, Any]) -> None:
    """Write the checkpoint of `step` into `folder`, then drop all but the last two.

    Checkpoints of later steps are dropped too: whoever writes step 100 has started again below them.
    Raises: CheckpointError if the disk refuses it (the earlier checkpoints stay readable); ValueError for NaN in state.
    """
    text = json.dumps({"step": step, "state": state}, allow_nan=False, ensure_ascii=False).encode("utf-8")
    packed = _pack(arrays)
    try:
        _sweep(folder)
        with atomic_folder(folder / f"{_PREFIX}{step:08d}") as fresh:
            _write(fresh / _ARRAYS, packed)
            _write(fresh / _STATE, text)
            _write(fresh / _DIGEST, _digest(packed, text).encode("ascii"))
    except OSError as error:
        raise CheckpointError(_explain(folder, step, len(packed) + len(text), error)) from error
    steps = [number for number, _ in _folders(folder)]
    for number, path in _folders(folder):
        if number > step or number not in [n for n in steps if n <= step][-KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of `folder`, or None; damaged ones are skipped with a warning each."""
    _sweep(folder)
    for number, path in reversed(_folders(folder)):
        try:
            return _read(path, number)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("checkpoint=%s skipped='%s'", path, error)
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove `folder` and all checkpoints in it."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path, number: int) -> Checkpoint:
    packed, text = (path / _ARRAYS).read_bytes(), (path / _STATE).read_bytes()
    if (path / _DIGEST).read_text("ascii", errors="replace") != _digest(packed, text):
        raise ValueError("the digest does not match: the files are cut short or changed")
    value = json.loads(text)
    if value["step"] != number:
        raise ValueError(f"it says step {value['step']}")
    return Checkpoint(number, _unpack(packed), value["state"])


def _pack(arrays: dict[str, mx.array]) -> bytes:
    """Arrays as safetensors. The bytes pass through Python, because a failed write must raise, and MLX's may not."""
    mx.eval(arrays)
    return save({_BFLOAT16 * (a.dtype == mx.bfloat16) + name: _as_numpy(a) for name, a in arrays.items()})


def _unpack(packed: bytes) -> dict[str, mx.array]:
    arrays = {}
    for name, raw in load(packed).items():
        array = mx.array(raw)
        plain = name.removeprefix(_BFLOAT16)
        arrays[plain] = array if plain == name else array.view(mx.bfloat16)
    mx.eval(arrays)
    return arrays


def _as_numpy(array: mx.array) -> np.ndarray:
    """numpy has no bfloat16, so its bits go as uint16 under a marked name."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        flush_to_disk(file.fileno())


def _digest(packed: bytes, text: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(packed).digest() + hashlib.sha256(text).digest()).hexdigest()


def _folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint folder, rising; temporary ones (a leading dot) are none."""
    found = []
    for path in folder.glob(f"{_PREFIX}*"):
        if path.name.removeprefix(_PREFIX).isdigit():
            found.append((int(path.name.removeprefix(_PREFIX)), path))
    return sorted(found)


def _sweep(folder: Path) -> None:
    """Remove the temporary folders that a killed writer left. One process writes a folder, so none is in use."""
    for path in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _explain(folder: Path, step: int, size: int, error: OSError) -> str:
    last = max((number for number, _ in _folders(folder)), default=None)
    kept = "no earlier checkpoint exists" if last is None else f"the checkpoint of step {last} is whole and loads"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = f"free at least {size / 2**20:.1f} MiB there" if full else "make the folder writable"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot write the checkpoint of step {step} into {folder}: {reason}; {kept}; {fix} and run the stage again"
