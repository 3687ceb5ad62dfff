"""The thread that follows what should serve: it loads a new version and tries it out beside the one that serves."""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from pathlib import Path

from mlx_tasks.errors import DataError, StageError, UnavailableError
from mlx_tasks.serving.library import RegistrySource, Served, Source
from mlx_tasks.serving.worker import Loaded, Model, Worker

logger = logging.getLogger(__name__)

KEPT = 3
"""Other versions that stay loaded, for side-by-side looks."""


class Follower(threading.Thread):
    """Offers the worker what the source names, once it has shown that it draws.

    Attributes:
        problem: why the newest look brought nothing, in words; empty where all is well.
        refused: versions that may not serve, with the reason; one of them is not tried again until it changes.
        swaps: versions that came into service.
    """

    def __init__(self, worker: Worker, source: Source, poll_s: float = 2.0, most_rows: int = 32) -> None:
        """poll_s: between two looks at the source; most_rows: of a network call (`Engine`)."""
        super().__init__(name="follower", daemon=True)
        self.problem = "the model is being loaded"
        self.refused: dict[str, str] = {}
        self.swaps = 0
        self._worker, self._source = worker, source
        self._poll_s, self._most_rows = poll_s, most_rows
        self._others: dict[str, Loaded] = {}
        self._asked: queue.Queue[tuple[str, Future] | None] = queue.Queue()
        self._stopped = threading.Event()

    def loaded(self, reference: str) -> Future[Loaded]:
        """Another version of the model, loaded unless it is; NAME/VERSION or NAME@ALIAS."""
        future: Future[Loaded] = Future()
        self._asked.put((reference, future))
        return future

    def versions(self) -> Future[list]:
        """What the registry holds."""
        future: Future[list] = Future()
        self._asked.put(("", future))
        return future

    def stop(self) -> None:
        """End after what is at hand."""
        self._stopped.set()
        self._asked.put(None)

    def run(self) -> None:
        """Look, load, offer; between two looks answer who asks for other versions."""
        looked = -self._poll_s
        while not self._stopped.is_set():
            if time.monotonic() - looked >= self._poll_s:
                self._look()
                looked = time.monotonic()
            try:
                asked = self._asked.get(timeout=max(0.01, self._poll_s - (time.monotonic() - looked)))
            except queue.Empty:
                continue
            if asked is not None and asked[1].set_running_or_notify_cancel():
                self._give(*asked)
        while not self._asked.empty():
            left = self._asked.get_nowait()
            if left is not None and left[1].set_running_or_notify_cancel():
                left[1].set_exception(UnavailableError("the server is stopping"))

    def _give(self, reference: str, future: Future) -> None:
        try:
            future.set_result(self._another(reference) if reference else self._source.versions())
        except Exception as error:
            future.set_exception(error)

    def _look(self) -> None:
        """Bring what the source names into service; what serves stays where that cannot be done."""
        try:
            self._take(self._source.wanted())
        except (StageError, OSError, ValueError) as error:
            self._say(str(error))
            if self._worker.current is None:
                self._start_without()
        except Exception as error:
            logger.exception("looking for a new version failed")
            self._say(f"{type(error).__name__}: {error}")

    def _take(self, served: Served) -> None:
        current = self._worker.current
        if current is not None and current.folder == served.folder:
            self.problem = ""
            return
        if served.folder in self.refused:
            raise DataError(self.refused[served.folder])
        previous = self._worker.previous
        try:
            if previous is not None and previous.folder == served.folder:
                loaded = previous  # a way back costs nothing
            else:
                loaded = self._others.get(served.folder) or load(served, self._most_rows)
        except (DataError, ValueError) as error:
            self.refused[served.folder] = f"{served.name} {served.version} may not serve: {error}"
            raise DataError(self.refused[served.folder]) from None
        self._worker.offer(loaded)
        self.swaps += 1
        self.problem = ""
        self._source.accepted(served)
        self._forget()
        logger.info("serving=%s digest=%s", loaded.model.id, loaded.model.digest[:12])

    def _start_without(self) -> None:
        """Where nothing serves yet and the registry is not there: what served before, if it is still sound."""
        served = self._source.last_good()
        if served is None or served.folder in self.refused:
            return
        told = self.problem
        try:
            self._worker.offer(load(served, self._most_rows))
        except (DataError, ValueError, OSError) as error:
            self.refused[served.folder] = str(error)
            return
        logger.warning("serving=%s/%s from the store: %s", served.name, served.version, told)

    def _another(self, reference: str) -> Loaded:
        for loaded in (self._worker.current, self._worker.previous, *self._others.values()):
            if loaded is not None and loaded.model.id == reference:
                return loaded
        served = self._source.find(reference)
        found = self._others.pop(served.folder, None) or load(served, self._most_rows)
        self._others[served.folder] = found  # the newest asked for is the last to go
        while len(self._others) > KEPT:
            self._others.pop(next(iter(self._others)))
        return found

    def _forget(self) -> None:
        """Copies on the disk that are neither in service nor loaded."""
        if isinstance(self._source, RegistrySource):
            held = (self._worker.current, self._worker.previous, *self._others.values())
            self._source.forget({Path(loaded.folder).name for loaded in held if loaded is not None})

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            logger.error("bundle=refused reason='%s'", problem)
        self.problem = problem


def load(served: Served, most_rows: int = 32) -> Loaded:
    """Read, check and try out a version.  Raises: DataError where it may not serve."""
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.serving.checks import check_before_serving
    from mlx_tasks.serving.engine import Engine, Plan

    folder = Path(served.folder)
    bundle = read_bundle(folder)
    if served.digest and bundle.digest != served.digest:
        raise DataError(f"{folder} has digest {bundle.digest[:12]}, expected {served.digest[:12]}")
    check_before_serving(folder, bundle)
    sampler = bundle.sampler
    engine, branches = Engine(bundle, most_rows), Plan.own(bundle).branches
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
