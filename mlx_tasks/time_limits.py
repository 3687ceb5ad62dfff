"""How long a stage may compute, and how it ends when it takes longer. Light: DAGs and the operator read it too.

A limit is there for what hangs, not for what is long: a training of days is a right one. ADO_LIMIT_HOURS sets it, for
all stages ("48") or for some ("train=720,tune=24"); 0 is no limit. Waiting for the accelerator does not count.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from mlx_tasks.catalog import STAGES
from mlx_tasks.errors import DataError, ExitCode, TimeLimitError
from mlx_tasks.supervision import kill_children

VARIABLE = "ADO_LIMIT_HOURS"
HOURS = dict.fromkeys(STAGES, 72.0) | {
    "train": 720.0,
    "distill": 720.0,
    "search_trial": 336.0,
    "search_select": 336.0,
    "tune": 168.0,
    "features": 168.0,
    "image_text": 168.0,
    "score_share": 168.0,
    "evaluate": 168.0,
}
"""Stage -> hours of one try."""
AROUND_H = 48.0
"""What a task may take beyond its stage: waiting for a lock, fetching what it reads, storing what it made."""
GRACE_S = 60.0
"""Between asking a stage to end and ending it: what hangs in a system call or on a device does not listen."""


def limit_hours(stage: str, text: str | None = None) -> float:
    """A stage's limit, 0 for none.  Raises: DataError for a setting (ADO_LIMIT_HOURS) that says no hours."""
    text = os.environ.get(VARIABLE, "") if text is None else text
    hours = HOURS[stage]
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, named, value = part.rpartition("=")
        name = name.strip()
        if named and name not in STAGES:
            raise DataError(f"{VARIABLE} names stages, got {name!r}; there are: {', '.join(STAGES)}")
        given = _hours(value, text)
        if not named or name == stage:
            hours = given
    return hours


def task_timeout(stage: str | None = None) -> timedelta | None:
    """Airflow's execution_timeout of a task that runs a stage, or none; None where it has no limit."""
    hours = limit_hours(stage) if stage else 0.0
    return timedelta(hours=hours + AROUND_H) if hours or stage is None else None


@contextlib.contextmanager
def within(stage: str, on_deaf: Callable[[ExitCode, str], Any]) -> Iterator[None]:
    """The block raises TimeLimitError in the main thread once it has taken longer than its stage may.

    One that does not listen is ended after GRACE_S more, its children first, with `on_deaf` called before.
    """
    hours = limit_hours(stage)
    if not hours:
        yield
        return
    words = (
        f"took longer than its limit of {hours:g} h and was ended; its checkpoint is kept. If it was at work and did "
        f"not hang, raise {VARIABLE} ({stage}=HOURS, 0 for no limit) and run it again: it goes on from there"
    )
    over = threading.Event()

    def interrupt(signum: int, frame: object) -> None:
        raise TimeLimitError(words)

    def expire() -> None:
        if over.is_set():
            return
        os.kill(os.getpid(), signal.SIGUSR2)
        if over.wait(GRACE_S):
            return
        kill_children()
        with contextlib.suppress(Exception):
            on_deaf(ExitCode.TIMED_OUT, words)
        os._exit(ExitCode.TIMED_OUT)

    before = signal.signal(signal.SIGUSR2, interrupt)
    clock = threading.Timer(3600.0 * hours, expire)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.cancel()
        signal.signal(signal.SIGUSR2, before)


def _hours(value: str, text: str) -> float:
    try:
        hours = float(value)
    except ValueError:
        hours = math.nan
    if not 0 <= hours <= threading.TIMEOUT_MAX / 3600:
        raise DataError(f"{VARIABLE} is hours, or STAGE=HOURS with commas between, 0 for no limit; got {text!r}")
    return hours
