"""Put a registered bundle into service: look at a canary, swap, verify, roll back.

What serves is named by a pointer file (pointer.py) that a server follows, and, where the bundle came from the
registry, by the alias `serving`. Every step works on its own, is safe to repeat, and prints its outcome as JSON.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.errors import DataError, GateRefused, UnavailableError
from mlx_tasks.files import atomic_folder
from mlx_tasks.serving.pointer import Pointer, read_pointer, read_previous, write_pointer

logger = logging.getLogger(__name__)

CANARY_SEED = 2_000_003
CANARY_IMAGES = 128


@dataclass(frozen=True)
class Canary:
    """What a look at a bundle found.

    Attributes:
        passed: whether it may serve.
        reasons: why not.
        measured: the figures behind it.
    """

    passed: bool
    reasons: tuple[str, ...]
    measured: dict[str, Any]


def canary(bundle_folder: Path, images: int = CANARY_IMAGES, max_quality_loss: float = 0.5) -> Canary:
    """Draw fixed seeds and compare them with the bundle's registered reference.

    Refused where a pixel is not finite, where all images are alike, where the Frechet distance to held-out images lies
    more than `max_quality_loss` above the registered images' own, or where a two-sample test at level 0.001 tells
    canary and registered images apart: then this machine does not draw what was scored.
    """
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.monitoring.monitor import Rules, compare
    from mlx_tasks.monitoring.window import Window
    from mlx_tasks.registry.draw import draw
    from mlx_tasks.registry.reference import read_reference

    bundle, reference = read_bundle(bundle_folder), read_reference(bundle_folder)
    names = bundle.sampler.class_names
    labels = [i % len(names) if names else -1 for i in range(images)]
    try:
        drawn = draw(bundle, labels, list(range(CANARY_SEED, CANARY_SEED + images)))
    except ValueError as error:
        return Canary(False, (f"fixed seeds give no images: {error}",), {})
    spread = float(drawn.astype(np.float64).std(axis=0).mean())
    window = Window(drawn, tuple(names[label] if label >= 0 else "" for label in labels), {})
    rules = Rules(level=0.001, permutations=1999, max_quality_loss=max_quality_loss, min_images=2)
    report = compare(window, reference, list(names), rules)
    reasons = [f"{alert['name']}: {alert['message']}" for alert in report["alerts"]]
    if spread == 0.0:
        reasons.append("every seed gives the same image")
    return Canary(not reasons, tuple(reasons), report["measured"] | {"spread": spread, "digest": bundle.digest})


def swap(state: Path, bundle_folder: Path, name: str, version: str, token: str) -> Pointer:
    """Copy a bundle into the state folder and let the pointer name it.

    A bundle that serves already is left alone, and a second swap by the same token keeps what served before it, so a
    retry loses no way back.
    """
    import shutil

    from mlx_tasks.models.bundle import bundle_digest
    from mlx_tasks.models.folder import check_digests

    check_digests(bundle_folder)
    digest = bundle_digest(bundle_folder)
    place = state / "bundles" / digest[:16]
    if not place.is_dir():
        with atomic_folder(place) as fresh:
            shutil.copytree(bundle_folder, fresh, dirs_exist_ok=True)
    check_digests(place)
    path = pointer_path(state)
    before = read_pointer(path) if path.is_file() else None
    now = Pointer(name, version, str(place), digest, token)
    if before is not None and (before.name, before.version, before.digest) == (name, version, digest):
        now = before
    else:
        write_pointer(path, now, before if before is None or before.token != token else read_previous(path))
    return now


def verify(state: Path, url: str | None = None, patience_s: float = 30.0) -> dict[str, Any]:
    """Check that what the pointer names can be read and draws the same image twice; with `url`, that a server has it.

    Raises: DataError for a bundle that cannot serve; UnavailableError where the server does not come to have it.
    """
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.registry.draw import draw

    pointer = read_pointer(pointer_path(state))
    bundle = read_bundle(Path(pointer.bundle))
    if bundle.digest != pointer.digest:
        raise DataError(f"{pointer.bundle} changed since it was deployed: roll back")
    first, second = (draw(bundle, [0], [CANARY_SEED], batch_size=1) for _ in range(2))
    if not np.array_equal(first, second):
        raise DataError(f"{pointer.bundle} draws two images from one seed: roll back")
    if url:
        _wait_for_server(url.rstrip("/"), pointer.digest, patience_s)
    return asdict(pointer) | {"server": url}


def roll_back(state: Path, token: str | None = None) -> Pointer | None:
    """Let the pointer name what served before, or nothing if nothing did; what is named now, or None.

    With a `token`, only a swap of that token is undone; another deployment's is left alone.
    """
    path = pointer_path(state)
    now = read_pointer(path) if path.is_file() else None
    if now is None or (token is not None and now.token != token):
        return now
    before = read_previous(path)
    if before is None:
        path.unlink()
    else:
        write_pointer(path, before, None)
    return before


def pointer_path(state: Path) -> Path:
    """The pointer file of a state folder."""
    return state / "serving.json"


def refuse(found: Canary) -> None:
    """Raises: GateRefused with the canary's reasons, if it has any."""
    if not found.passed:
        raise GateRefused(list(found.reasons))


def _wait_for_server(url: str, digest: str, patience_s: float) -> None:
    import httpx

    deadline = time.monotonic() + patience_s
    told = "no answer"
    while True:
        try:
            models = httpx.get(f"{url}/v1/models", timeout=3.0, trust_env=False).json()["data"]
            served = models[0]["digest"] if models else "none"
            if served == digest:
                return
            told = f"it serves {served[:12]}"
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            told = f"{type(error).__name__}: {error}"
        if time.monotonic() >= deadline:
            raise UnavailableError(f"{url} does not serve {digest[:12]} after {patience_s:g} s ({told}): roll back")
        time.sleep(0.3)
