"""Put a registered version into service: look at a canary, swap, verify through the service, roll back.

What serves is named by the alias `serving`, which servers follow (`mlx-tasks serve --model NAME@serving`); what served
before it stands in a tag of the model. Every step works on its own and is safe to repeat.
"""

from __future__ import annotations

import base64
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.registry.history import record
from mlx_tasks.registry.mlflow_registry import DIGEST_TAG
from mlx_tasks.registry.names import SERVING

if TYPE_CHECKING:
    from mlx_tasks.registry.mlflow_registry import Registry

CANARY_SEED = 2_000_003
CANARY_IMAGES = 128
CANARY_LEVEL = 0.005
"""Chance that a sound version is refused by the monitor's tests; by hand it is deployed again with no harm."""
ROUNDING = 2
"""Grey levels by which two devices may differ in one pixel."""
DEPLOYED_TAG = "mlx_tasks.deployed"


@dataclass(frozen=True)
class Deployed:
    """A deployment as it is remembered.

    Attributes:
        name: of the model.
        now: the version it put into service; empty for none.
        before: the version that served before; empty for none.
        token: of the run that did it.
    """

    name: str
    now: str = ""
    before: str = ""
    token: str = ""


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
    more than `max_quality_loss` above the registered images' own, or where the monitor's tests at CANARY_LEVEL tell
    canary and registered images apart: then this machine does not draw what was scored.
    """
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.metrics.scalars import picture_numbers
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.monitoring.monitor import Rules, Seen, compare
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
    classes = tuple(names[label] if label >= 0 else "" for label in labels)
    seen = Seen(reference.features(drawn), classes, picture_numbers(drawn))
    alerts, measured = compare(seen, reference, list(names), Rules(level=CANARY_LEVEL), bundle.digest)
    reasons = [f"{alert.metric}: {alert.message}" for alert in alerts]
    now, then = measured["frechet_distance"], measured["registered_frechet_distance"]
    if now > (1 + max_quality_loss) * then:
        reasons.append(f"Frechet distance {now:.4g} at equal counts, {then:.4g} when it was registered")
    if spread == 0.0:
        reasons.append("every seed gives the same image")
    return Canary(not reasons, tuple(reasons), measured | {"spread": spread, "digest": bundle.digest})


def swap(registry: Registry, name: str, version: str, token: str, why: str = "") -> Deployed:
    """Let the alias `serving` name a version; servers that follow it take it once they have tried it out.

    What served before is written down first, so that no crash loses the way back: a version that serves already is left
    alone, and a second swap by the same token keeps what served before it.
    """
    now = registry.by_alias(name, SERVING)
    told = _told(registry, name)
    serving = now.version if now else ""
    if serving == version:
        if told.now == version and told.token == token:  # a crash may have come before the entry
            record(registry, name, version, "deployed", before=told.before, run=token, why=why or "its canary passed")
        return told if told.now == version else Deployed(name, version)
    before = told.before if told.token == token and told.now == version else serving
    deployed = Deployed(name, version, before, token)
    _tell(registry, deployed)
    registry.set_alias(name, SERVING, version)
    record(registry, name, version, "deployed", before=before, run=token, why=why or "its canary passed")
    return deployed


def verify(
    registry: Registry, name: str, url: str | None = None, patience_s: float = 60.0, key: str | None = None
) -> dict[str, Any]:
    """Check what the alias `serving` names; with `url`, that a server has it and draws what this machine draws.

    Raises: DataError for a bundle that cannot serve, or images that are not its own; UnavailableError where the server
        does not come to have it.
    """
    from mlx_tasks import hardware

    hardware.prepare()
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.registry.draw import draw

    version = registry.by_alias(name, SERVING)
    if version is None:
        raise DataError(f"nothing of {name} serves: `mlx-tasks deploy swap` first")
    with tempfile.TemporaryDirectory(prefix="mlx-tasks-") as place:
        bundle = read_bundle(registry.download(version, Path(place)))
    if bundle.digest != version.tags.get(DIGEST_TAG, bundle.digest):
        raise DataError(f"{version.uri} does not hold what was registered: its artifacts were changed")
    label = 0 if bundle.sampler.class_names else -1
    first, second = (draw(bundle, [label], [CANARY_SEED]) for _ in range(2))
    if not np.array_equal(first, second):
        raise DataError(f"{version.uri} draws two images from one seed")
    if url:
        service = _Service(url, key)
        service.wait_for(bundle.digest, patience_s, version.version)
        body = {"seed": CANARY_SEED} | ({"class": bundle.sampler.class_names[0]} if label == 0 else {})
        away = int(np.abs(service.draw(body).astype(int) - first[0].astype(int)).max())
        if away > ROUNDING:
            raise DataError(
                f"{url} draws another image of seed {CANARY_SEED}: {away} grey levels away, at most {ROUNDING}"
            )
    return {"name": name, "version": version.version, "digest": bundle.digest, "server": url}


def roll_back(registry: Registry, name: str, token: str | None = None, why: str = "") -> str:
    """Let the alias name what served before, or nothing if nothing did; the version that serves now, or "".

    With a `token`, only a swap of that token is undone; another deployment's is left alone.
    """
    now, told = registry.by_alias(name, SERVING), _told(registry, name)
    serving = now.version if now else ""
    if not told.now or (token is not None and told.token != token):
        return serving
    if serving == told.now and told.before:
        registry.set_alias(name, SERVING, told.before)
    elif serving == told.now:
        registry.delete_alias(name, SERVING)
    else:
        return serving  # the swap never came so far
    _tell(registry, Deployed(name, told.before))
    text = why or "the deployment was taken back"
    text += f"; serving now: version {told.before}" if told.before else "; nothing serves now"
    record(registry, name, told.now, "rolled back", before=told.now, run=token or "", why=text)
    return told.before


def _told(registry: Registry, name: str) -> Deployed:
    """The newest deployment as its tag on the model tells it."""
    try:
        return Deployed(name, **json.loads(registry.model_tag(name, DEPLOYED_TAG) or "{}"))
    except (ValueError, TypeError):
        return Deployed(name)


def _tell(registry: Registry, deployed: Deployed) -> None:
    values = {"now": deployed.now, "before": deployed.before, "token": deployed.token}
    registry.set_model_tag(deployed.name, DEPLOYED_TAG, json.dumps(values))


class _Service:
    """A running server, asked over HTTP."""

    def __init__(self, url: str, key: str | None) -> None:
        import httpx

        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self._url, timeout=30.0, trust_env=False, headers=headers, follow_redirects=False
        )

    def wait_for(self, digest: str, patience_s: float, version: str | None = None) -> None:
        """Return once this bundle serves, as this version: another one may hold the same bytes.

        Raises: UnavailableError with what the server told last.
        """
        deadline, told = time.monotonic() + patience_s, "no answer"
        while True:
            try:
                models = self._json("GET", "/v1/models")["data"]
                now = next((one for one in models if one["serves"]), {"digest": "none", "version": ""})
                serving = now["digest"]
                if serving == digest and version in (None, now["version"]):
                    return
                problem = self._json("GET", "/readyz").get("problem")
                told = f"it serves {serving[:12]}" + (f" and says: {problem}" if problem else "")
            except (UnavailableError, KeyError, TypeError) as error:
                told = str(error)
            if time.monotonic() >= deadline:
                raise UnavailableError(f"{self._url} does not serve {digest[:12]} after {patience_s:g} s: {told}")
            time.sleep(0.3)

    def draw(self, body: dict[str, Any]) -> np.ndarray:
        """(H, W, C) uint8 of one request."""
        from mlx_tasks.registry.png import decode_png

        answer = self._json("POST", "/v1/images/generations", json=body)
        return decode_png(base64.b64decode(answer["data"][0]["b64_json"]))

    def _json(self, method: str, path: str, **options: Any) -> Any:
        import httpx

        try:
            answer = self._http.request(method, path, **options)
            if answer.status_code >= 400 and path != "/readyz":
                raise UnavailableError(f"{path} answers {answer.status_code}: {answer.text[:200]}")
            if not answer.has_redirect_location:
                return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise UnavailableError(f"{path}: {type(error).__name__} {error}") from error
        raise DataError(
            f"{self._url}{path} redirects to {answer.headers['location']!r:.200}, and a key is taken nowhere else: "
            "configure the server's own address"
        )
