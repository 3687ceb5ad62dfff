"""The one thread that draws: it takes jobs from a bounded queue into the engines' batches, and swaps between batches.

Weights are loaded, evaluated and tried out in another thread (`follower`), so a new version costs no request its turn.
Requests that are under way when a version is swapped end on the version they began with.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from mlx_tasks.errors import BusyError, UnavailableError
from mlx_tasks.serving.engine import Engine, Finished, Job

logger = logging.getLogger(__name__)

FADE = 0.977
"""Of the pace's memory, a network call: half of it is the last 30 calls."""


class QueueFullError(BusyError):
    """More images wait than the queue holds.

    Attributes:
        retry_after_s: in about how many seconds there will be room.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


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
        nfe: network evaluations of an image with the bundle's own steps.
        levels: network evaluations of an image by quality level.
        guided: whether guidance can be asked for.
        exact: whether a seed's bits are the same in any batch.
        loaded: Unix time.
    """

    name: str
    version: str
    digest: str
    class_names: tuple[str, ...]
    resolution: int
    channels: int
    nfe: int
    levels: dict[str, int]
    guided: bool
    exact: bool
    loaded: float

    @property
    def id(self) -> str:
        """NAME/VERSION."""
        return f"{self.name}/{self.version}"


@dataclass(eq=False)
class Loaded:
    """A version ready to draw."""

    model: Model
    engine: Engine
    folder: str


@dataclass(eq=False)
class Ticket:
    """One request's place: in the queue, then in a batch.

    Attributes:
        loaded: what draws it.
        job: what is drawn.
        future: its end.
        arrived: when it came (time.perf_counter()).
        waited: seconds it waited in the queue, once it is under way.
    """

    loaded: Loaded
    job: Job
    future: Future[Finished] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def cancel(self) -> None:
        """Nobody waits for it any more: it leaves the queue, or the batch before the next network call."""
        self.job.cancelled = True
        self.future.cancel()


class Worker(threading.Thread):
    """Draws for everyone, in batches.

    Attributes:
        current: what serves; None before the first version is ready.
        previous: what served before it, kept for a way back.
        images_per_s: a running mean of what it draws while it is busy; 0.0 before the first image.
        on_call: called with the rows of each network call.
    """

    def __init__(self, queue_images: int = 256) -> None:
        """queue_images: images that may wait, of all requests together."""
        super().__init__(name="mlx-worker", daemon=True)
        self.queue_images = queue_images
        self.current: Loaded | None = None
        self.previous: Loaded | None = None
        self.images_per_s = 0.0
        self.on_call: Callable[[int], object] = lambda rows: None
        self._waiting: deque[Ticket] = deque()
        self._under_way: dict[int, Ticket] = {}
        self._engines: list[Engine] = []
        self._paced = (0.0, 0.0)
        self._work: Callable[[Engine], None] | None = None
        self._turn = threading.Condition()
        self._stopped = False

    @property
    def ready(self) -> bool:
        """Whether a request would be drawn."""
        return self.current is not None and self.is_alive() and not self._stopped

    @property
    def waiting_images(self) -> int:
        """Images in the queue, those under way not counted."""
        with self._turn:
            return self._count_waiting()

    def offer(self, loaded: Loaded) -> None:
        """Let a version that was tried out serve from the next request on."""
        with self._turn:
            if self.current is not None and self.current.model.digest != loaded.model.digest:
                self.previous = self.current
            self.current = loaded

    def submit(self, job: Job, loaded: Loaded | None = None) -> Ticket:
        """Queue a job for what serves, or for another version.

        Raises: UnavailableError before a model is there; QueueFullError.
        """
        with self._turn:
            loaded = loaded or self.current
            if self._stopped or not self.is_alive():
                raise UnavailableError("the server is stopping")
            if loaded is None:
                raise UnavailableError("no model is ready yet")
            waiting = self._count_waiting()
            if self._waiting and waiting + len(job.seeds) > self.queue_images:
                seconds = waiting / self.images_per_s if self.images_per_s else 2.0
                raise QueueFullError(
                    f"{waiting} images wait already and the queue holds {self.queue_images}: try again later",
                    min(60, max(1, math.ceil(seconds))),
                )
            ticket = Ticket(loaded, job)
            self._waiting.append(ticket)
            self._turn.notify()
        return ticket

    def do(self, work: Callable[[Engine], None]) -> None:
        """Let the drawing thread do something with what serves, between two batches."""
        with self._turn:
            self._work = work
            self._turn.notify()

    def stop(self) -> None:
        """Refuse what comes and what waits; end once what is under way is drawn."""
        with self._turn:
            self._stopped = True
            self._turn.notify()

    def run(self) -> None:
        """Take, draw, answer; wait where there is nothing to do."""
        try:
            while True:
                with self._turn:
                    while not (self._waiting or self._under_way or self._stopped or self._work):
                        self._turn.wait()
                    if self._stopped and not self._under_way:
                        break
                    taken = [] if self._stopped else self._take()
                    work, self._work = self._work, None
                if work is not None and self.current is not None:
                    work(self.current.engine)
                self._draw(taken)
        finally:
            with self._turn:
                self._stopped = True
                left = [*self._waiting, *self._under_way.values()]
                self._waiting.clear()
                self._under_way.clear()
            for ticket in left:
                if not ticket.future.done():
                    ticket.future.set_exception(UnavailableError("the server is stopping"))

    def _count_waiting(self) -> int:
        return sum(len(ticket.job.seeds) for ticket in self._waiting if not ticket.job.cancelled)

    def _take(self) -> list[Ticket]:
        """From the queue, in order, what fits into the next batch; at least one where nothing is under way."""
        taken: list[Ticket] = []
        rows = sum(_rows(ticket) for ticket in self._under_way.values())
        while self._waiting:
            ticket = self._waiting[0]
            if (taken or self._under_way) and rows + _rows(ticket) > ticket.loaded.engine.most_rows:
                break
            self._waiting.popleft()
            if ticket.future.set_running_or_notify_cancel():
                ticket.waited = time.perf_counter() - ticket.arrived
                taken.append(ticket)
                rows += _rows(ticket)
        return taken

    def _draw(self, taken: list[Ticket]) -> None:
        """Let what was taken join, and make one network call of every engine that has something to do."""
        began = time.perf_counter()
        for ticket in taken:
            self._under_way[id(ticket.job)] = ticket
            if ticket.loaded.engine not in self._engines:
                self._engines.append(ticket.loaded.engine)
        ended: list[Finished] = []
        for engine in self._engines:
            before = engine.calls, engine.rows
            try:
                ended += engine.admit([ticket.job for ticket in taken if ticket.loaded.engine is engine])
                ended += engine.step()
            except Exception as error:  # none is known; should one come, it costs its requests and not the server
                logger.exception("an engine failed")
                ended += [Finished(job, error=error) for job in engine.drop()]
            if engine.calls > before[0]:
                self.on_call(engine.rows - before[1])
        self._engines = [engine for engine in self._engines if engine.busy]
        for finished in ended:
            self._answer(finished)
        for key, ticket in list(self._under_way.items()):
            if ticket.job.cancelled:
                del self._under_way[key]
        images, spent = self._paced
        images, spent = FADE * images + sum(len(one.job.seeds) for one in ended), FADE * spent
        self._paced = (images, spent + time.perf_counter() - began)
        self.images_per_s = images / self._paced[1] if self._paced[1] else 0.0

    def _answer(self, finished: Finished) -> None:
        ticket = self._under_way.pop(id(finished.job), None)
        if ticket is None or ticket.job.cancelled:
            return
        if finished.error is not None:
            ticket.future.set_exception(finished.error)
        else:
            ticket.future.set_result(finished)


def _rows(ticket: Ticket) -> int:
    """Rows that a ticket takes in a batch."""
    return 0 if ticket.job.cancelled else len(ticket.job.seeds) * ticket.job.plan.branches
