"""The one thread that draws: it takes jobs from a bounded queue into network calls, and swaps between these.

Who comes next is `shares`' answer, asked before every network call: a job that is under way makes room for one of a
caller who got less, and goes on after it.

Weights are loaded, evaluated and tried out in another thread (`follower`), so a new version costs no request its turn.
Requests that are under way when a version is swapped end on the version they began with.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from mlx_tasks.errors import BusyError, UnavailableError
from mlx_tasks.registry.class_captions import read_captions
from mlx_tasks.registry.reference import CAPTIONS, FOLDER
from mlx_tasks.serving.engine import Engine, Finished, Job
from mlx_tasks.serving.prompts import ClassNames
from mlx_tasks.serving.shares import Shares

logger = logging.getLogger(__name__)

FADE = 0.977
"""Of the pace's memory, a network call: half of it is the last 30 calls."""


class QueueFullError(BusyError):
    """A caller's share of the queue is full.

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
    """A version ready to draw.

    Attributes:
        model: what it is.
        engine: draws with it.
        folder: its bundle.
        classes: finds its classes by name.
    """

    model: Model
    engine: Engine
    folder: str
    classes: ClassNames = field(init=False)

    def __post_init__(self) -> None:
        place = Path(self.folder) / FOLDER / CAPTIONS
        self.classes = ClassNames(self.model.class_names, read_captions(place) if place.is_dir() else ())

    @property
    def own_cost(self) -> float:
        """Pixel evaluations of an image drawn the version's own way."""
        return self.model.nfe * self.engine.pixels


@dataclass(eq=False)
class Ticket:
    """One request's place: in the queue, then in batches.

    Attributes:
        loaded: what draws it.
        job: what is drawn.
        caller: whose share it takes.
        future: its end.
        arrived: when it came (time.perf_counter()).
        waited: seconds it waited in the queue, once it is under way.
    """

    loaded: Loaded
    job: Job
    caller: str = ""
    future: Future[Finished] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    @property
    def cost(self) -> float:
        """Pixel evaluations of all its images."""
        return self.job.evaluations * self.loaded.engine.pixels

    @property
    def call_cost(self) -> float:
        """Pixel evaluations of one of its network calls."""
        return self.job.rows * self.loaded.engine.pixels

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
        work_per_s: of its work (pixel evaluations), likewise.
        on_call: called with the rows of each network call.
    """

    def __init__(self, queue_images: int = 256) -> None:
        """queue_images: work that may wait, in images drawn the serving model's own way; callers share it evenly."""
        super().__init__(name="mlx-worker", daemon=True)
        self.queue_images = queue_images
        self.current: Loaded | None = None
        self.previous: Loaded | None = None
        self.images_per_s = self.work_per_s = 0.0
        self.on_call: Callable[[int], object] = lambda rows: None
        self._waiting: list[Ticket] = []
        self._under_way: dict[int, Ticket] = {}
        self._shares: Shares[Ticket] = Shares()
        self._engines: list[Engine] = []
        self._paced = (0.0, 0.0, 0.0)
        self._next: Engine | None = None
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
            return sum(len(ticket.job.seeds) for ticket in self._waiting if not ticket.job.cancelled)

    @property
    def waiting_work(self) -> float:
        """Pixel evaluations in the queue, those under way not counted."""
        with self._turn:
            return sum(ticket.cost for ticket in self._waiting if not ticket.job.cancelled)

    def offer(self, loaded: Loaded) -> None:
        """Let a version that was tried out serve from the next request on."""
        with self._turn:
            if self.current is not None and self.current.model.digest != loaded.model.digest:
                self.previous = self.current
            self.current = loaded

    def submit(self, job: Job, loaded: Loaded | None = None, caller: str = "") -> Ticket:
        """Queue a job for what serves, or for another version.

        Raises: UnavailableError before a model is there; QueueFullError.
        """
        with self._turn:
            loaded = loaded or self.current
            if self._stopped or not self.is_alive():
                raise UnavailableError("the server is stopping")
            if loaded is None:
                raise UnavailableError("no model is ready yet")
            ticket = Ticket(loaded, job, caller)
            self._make_room(ticket)
            self._shares.add(ticket)
            self._waiting.append(ticket)
            self._turn.notify()
        return ticket

    def _make_room(self, ticket: Ticket) -> None:
        """Raises: QueueFullError where the caller's share of the queue is full.

        Counted is what would be drawn before the ticket, so that a small request finds room behind no large one; a
        caller of whom nothing waits is always let in.
        """
        self._let_go()
        callers = len({one.caller for one in self._waiting} | {ticket.caller})
        before = self._shares.before(ticket.caller, ticket.cost, self._waiting)
        if not any(one.caller == ticket.caller for one in self._waiting):
            return
        own = (self.current or ticket.loaded).own_cost
        room = self.queue_images * own / callers
        if before + ticket.cost > room:
            seconds = callers * before / self.work_per_s if self.work_per_s else 2.0
            raise QueueFullError(
                f"work of {before / own:.3g} images waits before this request, itself work of {ticket.cost / own:.3g}; "
                f"the queue holds {room / own:.3g} for each of {callers} callers, in images drawn the model's own way: "
                "come again later, or ask for fewer images or steps",
                min(60, max(1, math.ceil(seconds))),
            )

    def _let_go(self) -> None:
        """Take out of the queue who left it."""
        for left in [one for one in self._waiting if one.job.cancelled]:
            self._waiting.remove(left)
            self._shares.remove(left)

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
                    taken = self._take()
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

    def _take(self) -> list[Ticket]:
        """From the queue what the next network call has room for, by rank, beside those under way that go before it.

        One version's network is called at a time: that of whoever comes first.
        """
        self._let_go()
        waiting = [] if self._stopped else self._waiting
        live = [ticket for ticket in (*waiting, *self._under_way.values()) if not ticket.job.cancelled]
        taken: list[Ticket] = []
        rows, engine = 0, None
        for rank, ticket in enumerate(self._shares.order(live)):
            ticket.job.rank = rank
            engine = engine or ticket.loaded.engine
            if ticket.loaded.engine is not engine or (rows and rows + ticket.job.rows > engine.most_rows):
                continue
            rows += ticket.job.rows
            if id(ticket.job) not in self._under_way and ticket.future.set_running_or_notify_cancel():
                ticket.waited = time.perf_counter() - ticket.arrived
                taken.append(ticket)
        self._waiting = [ticket for ticket in self._waiting if ticket not in taken]
        self._next = engine
        return taken

    def _draw(self, taken: list[Ticket]) -> None:
        """Let what was taken join, and make one network call of the version that is next."""
        began = time.perf_counter()
        for ticket in taken:
            self._under_way[id(ticket.job)] = ticket
        ended: list[Finished] = []
        work, engine = 0.0, self._next
        for other in self._engines:
            other.sweep()
        if engine is not None:
            if engine not in self._engines:
                self._engines.append(engine)
            before = engine.calls, engine.rows
            try:
                ended += engine.admit([ticket.job for ticket in taken])
                ended += engine.step()
            except Exception as error:  # none is known; should one come, it costs its requests and not the server
                logger.exception("an engine failed")
                ended += [Finished(job, error=error) for job in engine.drop()]
            if engine.calls > before[0]:
                self.on_call(engine.rows - before[1])
                work = self._charge(engine)
        self._engines = [engine for engine in self._engines if engine.busy]
        for finished in ended:
            self._answer(finished)
        with self._turn:
            for ticket in [ticket for ticket in self._under_way.values() if ticket.job.cancelled]:
                self._forget(ticket)
        images, worked, spent = (FADE * one for one in self._paced)
        images, worked = images + sum(len(one.job.seeds) for one in ended), worked + work
        self._paced = images, worked, spent + time.perf_counter() - began
        if self._paced[2]:
            self.images_per_s, self.work_per_s = images / self._paced[2], worked / self._paced[2]

    def _charge(self, engine: Engine) -> float:
        """Put the last network call on the accounts of those who took part; its work."""
        work = 0.0
        with self._turn:
            for job, rows in engine.took:
                work += rows * engine.pixels
                if (ticket := self._under_way.get(id(job))) is not None:
                    self._shares.charge(ticket, rows * engine.pixels)
        return work

    def _forget(self, ticket: Ticket) -> None:
        del self._under_way[id(ticket.job)]
        self._shares.remove(ticket)

    def _answer(self, finished: Finished) -> None:
        ticket = self._under_way.get(id(finished.job))
        if ticket is None:
            return
        with self._turn:
            self._forget(ticket)
        if ticket.job.cancelled:
            return
        if finished.error is not None:
            ticket.future.set_exception(finished.error)
        else:
            ticket.future.set_result(finished)
