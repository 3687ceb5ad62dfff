"""The thread that follows what should serve: a new version is tried out beside the one that serves, then loaded."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from mlx_tasks.errors import BusyError, DataError, UnavailableError
from mlx_tasks.serving.failed import Later, Refusals
from mlx_tasks.serving.library import Served, Source
from mlx_tasks.serving.loading import load
from mlx_tasks.serving.trial import try_out
from mlx_tasks.serving.worker import Loaded, Worker
from mlx_tasks.tracking.rest import MlflowRefused

logger = logging.getLogger(__name__)

KEPT = 3
"""Other versions that stay loaded, for side-by-side looks."""
LOOK = ""
"""Among what is tried again later: the look at the source itself."""
MOST_LOOK_S = 15.0
"""Between two looks at a source that does not answer."""
Trial = Callable[[Served, int, threading.Event], tuple[int, bool]]
PASSING = (UnavailableError, BusyError, MlflowRefused, OSError, MemoryError)
"""Failures that say nothing about a version; all others do."""


class Follower(threading.Thread):
    """Offers the worker what the source names, once it has shown that it draws.

    Attributes:
        problem: why the newest look brought nothing, in words; empty where all is well.
        swaps: versions that came into service.
    """

    def __init__(
        self,
        worker: Worker,
        source: Source,
        poll_s: float = 2.0,
        most_rows: int = 32,
        trial: Trial = try_out,
    ) -> None:
        """poll_s: between two looks at the source; most_rows: of a network call (`Engine`); trial: see `try_out`."""
        super().__init__(name="follower", daemon=True)
        self.problem = "the model is being loaded"
        self.swaps = 0
        self._worker, self._source = worker, source
        self._poll_s, self._most_rows, self._trial = poll_s, most_rows, trial
        self._others: dict[str, Loaded] = {}
        self._refusals = Refusals(None if source.store is None else source.store / "refused")
        self._looks, self._later = Later(poll_s, MOST_LOOK_S), Later(poll_s)
        self._passed: dict[tuple[str, ...], tuple[int, bool]] = {}
        self._asked: queue.Queue[tuple[str, Future] | None] = queue.Queue()
        self._stopped = threading.Event()

    @property
    def refused(self) -> dict[str, str]:
        """{NAME/VERSION: why it may not serve}; none of them is tried again (`failed.Refusals`)."""
        return self._refusals.listed()

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
        """End after what is at hand; a trial is broken off."""
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
        except MlflowRefused as error:
            future.set_exception(UnavailableError(str(error)))
        except Exception as error:
            future.set_exception(error)

    def _look(self) -> None:
        """Bring what the source names into service; what serves stays where that cannot be done."""
        if self._looks.reason(LOOK):
            return
        try:
            served = self._source.wanted()
            self._looks.passed(LOOK)
        except Exception as error:
            self._looks.failed(LOOK, str(error))
            self._say(_words(error), error)
            served = None
        try:
            if served is not None:
                self._take(served)
        except Exception as error:
            self._say(_words(error), error)
        if self._worker.current is None:
            self._start_without()

    def _take(self, served: Served) -> None:
        current, previous = self._worker.current, self._worker.previous
        if not _is(current, served):
            # A way back costs nothing.
            loaded = previous if previous is not None and _is(previous, served) else self._bring(served)
            self._worker.offer(loaded)
            self.swaps += 1
            self._source.accepted(served)
            self._forget()
            logger.info("serving=%s digest=%s", loaded.model.id, loaded.model.digest[:12])
        self.problem = ""

    def _start_without(self) -> None:
        """Where nothing serves yet and what should cannot: what served before, if it is still sound."""
        served = self._source.last_good()
        if served is None:
            return
        told = self.problem
        try:
            self._worker.offer(self._bring(served))
        except Exception as error:
            logger.debug("last-good=%s: %s", served.id, error)
            return
        logger.warning("serving=%s from the store: %s", served.id, told)

    def _another(self, reference: str) -> Loaded:
        for loaded in (self._worker.current, self._worker.previous, *self._others.values()):
            if loaded is not None and loaded.model.id == reference:
                return loaded
        if away := self._looks.reason(LOOK):
            raise UnavailableError(away)
        served = self._source.find(reference)
        for loaded in (self._worker.current, self._worker.previous):
            if loaded is not None and _is(loaded, served):
                return loaded
        found = self._bring(served)
        self._others.pop(served.folder, None)
        self._others[served.folder] = found  # the newest asked for is the last to go
        if len(self._others) > KEPT:
            self._others.pop(next(iter(self._others)))
            self._forget()
        return found

    def _bring(self, served: Served) -> Loaded:
        """A version, fetched, tried out by a child and loaded, unless it is.

        Raises: DataError where it may not serve, which is found out once; UnavailableError where something else is in
            the way, which is looked at again after a while.
        """
        kept = self._others.get(served.folder)
        if kept is not None and _is(kept, served):
            return kept
        key = (served.id, *served.stamp)
        if reason := self._refusals.reason(served):
            raise DataError(reason)
        if reason := self._later.reason(served.id):
            raise UnavailableError(reason)
        try:
            self._source.fetch(served)
            if key not in self._passed:
                self._passed[key] = self._trial(served, self._most_rows, self._stopped)
            loaded = load(served, self._most_rows, self._passed[key])
        except PASSING as error:
            self._later.failed(served.id, f"{served.id} cannot be loaded now: {error}")
            raise UnavailableError(f"{served.id} cannot be loaded now: {error}") from error
        except Exception as error:
            self._refusals.add(served, f"{served.id} may not serve: {_words(error)}")
            logger.error("version=refused model=%s reason='%s'", served.id, error)
            raise DataError(self._refusals.reason(served) or str(error)) from error
        self._later.passed(served.id)
        return loaded

    def _forget(self) -> None:
        """Copies on the disk that are neither in service nor loaded."""
        held = (self._worker.current, self._worker.previous, *self._others.values())
        self._source.keep({loaded.folder for loaded in held if loaded is not None})

    def _say(self, problem: str, error: Exception) -> None:
        if problem != self.problem:
            known = isinstance(error, (DataError, *PASSING))
            logger.error("bundle=refused reason='%s'", problem, exc_info=None if known else error)
        self.problem = problem


def _is(loaded: Loaded | None, served: Served) -> bool:
    """Whether a loaded version is that one."""
    if loaded is None or loaded.folder != served.folder:
        return False
    return not served.digest or loaded.model.digest == served.digest


def _words(error: Exception) -> str:
    """What an error says; its kind too, where nobody wrote it for people."""
    return str(error) if isinstance(error, (DataError, *PASSING)) else f"{type(error).__name__}: {error}"
