"""The one thread that computes with MLX: it loads the bundle, draws, and takes a new bundle between two requests.

A lazy array made in one thread cannot be evaluated in another, so the weights live where they are used, and every
request passes through a bounded queue.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.errors import BusyError, DataError, StageError, UnavailableError
from mlx_tasks.serving.pointer import Pointer, read_pointer

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """What is being served, without the network.

    Attributes:
        name: of the registered model, or of the bundle's folder.
        version: its version in the registry, or the digest's first twelve digits.
        digest: of the bundle.
        class_names: label i means class_names[i].
        resolution: image side (pixels).
        channels: colour channels.
        nfe: network evaluations of an image.
        loaded: Unix time.
    """

    name: str
    version: str
    digest: str
    class_names: tuple[str, ...]
    resolution: int
    channels: int
    nfe: int
    loaded: float


@dataclass(frozen=True)
class Drawn:
    """What a request gets: the images, and the model that drew them."""

    images: np.ndarray
    model: Model


@dataclass(frozen=True)
class _Request:
    prompt: str
    seeds: list[int]
    future: Future[Drawn]


class Worker(threading.Thread):
    """Draws for everyone, one request at a time."""

    def __init__(self, source: Pointer | Path, queue_size: int = 32, poll_s: float = 1.0) -> None:
        """source: what to serve, or a pointer file to follow."""
        super().__init__(name="mlx-worker", daemon=True)
        self._source = source
        self._requests: queue.Queue[_Request | None] = queue.Queue(queue_size)
        self._poll_s = poll_s
        self._bundle: Bundle | None = None
        self._stopped = False
        self.model: Model | None = None
        self.problem = "the model is being loaded"

    @property
    def ready(self) -> bool:
        """Whether a request would be drawn."""
        return self.model is not None and self.is_alive() and not self._stopped

    def submit(self, prompt: str, seeds: list[int]) -> Future[Drawn]:
        """Ask for one image a seed.  Raises: UnavailableError before the model is there; BusyError for a full queue."""
        if not self.ready:
            raise UnavailableError(f"no model is ready: {self.problem}")
        future: Future[Drawn] = Future()
        try:
            self._requests.put_nowait(_Request(prompt, seeds, future))
        except queue.Full:
            raise BusyError(f"{self._requests.maxsize} requests wait already: try again in a few seconds") from None
        return future

    def stop(self) -> None:
        """Refuse what comes and end after the request at work."""
        self._stopped = True
        try:
            self._requests.put_nowait(None)
        except queue.Full:
            pass  # the thread sees the flag before its next request

    def run(self) -> None:
        """Load, then draw request after request; between two, look whether the pointer names another bundle."""
        from mlx_tasks import hardware

        hardware.prepare()
        seen: Pointer | None = None
        looked = 0.0
        while not self._stopped:
            if time.monotonic() - looked >= self._poll_s or seen is None:
                seen, looked = self._follow(seen), time.monotonic()
            try:
                request = self._requests.get(timeout=self._poll_s)
            except queue.Empty:
                continue
            if request is not None and request.future.set_running_or_notify_cancel():
                self._serve(request)
        while not self._requests.empty():
            left = self._requests.get_nowait()
            if left is not None and left.future.set_running_or_notify_cancel():
                left.future.set_exception(UnavailableError("the server is stopping"))

    def _serve(self, request: _Request) -> None:
        from mlx_tasks.registry.draw import draw
        from mlx_tasks.serving.prompts import class_of

        assert self._bundle is not None and self.model is not None
        try:
            label = class_of(request.prompt, self._bundle.sampler.class_names)
            # One at a time: a batch around an image moves its rounding, and a seed must give the same bytes always.
            images = draw(self._bundle, [label] * len(request.seeds), request.seeds, batch_size=1)
            request.future.set_result(Drawn(images, self.model))
        except Exception as error:
            request.future.set_exception(error)

    def _follow(self, seen: Pointer | None) -> Pointer | None:
        """Load what the source names if that changed; what serves stays where the new one cannot be loaded."""
        try:
            wanted = self._source if isinstance(self._source, Pointer) else read_pointer(self._source)
            if wanted == seen:
                return seen
            self._load(wanted)
        except (StageError, OSError, ValueError) as error:
            if str(error) != self.problem:
                logger.error("bundle=refused reason='%s'", error)
            self.problem = str(error)
            return seen
        return wanted

    def _load(self, wanted: Pointer) -> None:
        from mlx_tasks.models.bundle import read_bundle
        from mlx_tasks.registry.draw import draw

        bundle = read_bundle(Path(wanted.bundle))
        if wanted.digest and bundle.digest != wanted.digest:
            raise DataError(f"{wanted.bundle} has digest {bundle.digest[:12]}, expected {wanted.digest[:12]}")
        draw(bundle, [0], [0])  # the first drawing compiles and allocates; better now than in a request
        self._bundle = bundle
        sampler = bundle.sampler
        self.model = Model(
            wanted.name,
            wanted.version or bundle.digest[:12],
            bundle.digest,
            tuple(sampler.class_names),
            sampler.resolution,
            sampler.channels,
            sampler.nfe,
            time.time(),
        )
        self.problem = ""
        logger.info("serving=%s version=%s digest=%s", self.model.name, self.model.version, self.model.digest[:12])
