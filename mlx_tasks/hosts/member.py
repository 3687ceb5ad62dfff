"""The process of a rank other than 0: `python -m mlx_tasks.hosts.member`, started by rank 0, here or through ssh.

It keeps nothing: data, plan and weights come through the ring, and it ends when its stdin does or falls silent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from mlx_tasks import hardware, locks
from mlx_tasks.errors import ExitCode
from mlx_tasks.failures import classify
from mlx_tasks.hosts import lines

FIRST_SILENCE_S = 60.0
"""Longest silence before rank 0 has said its own limit (seconds)."""


class Line:
    """The pipe to rank 0: messages in order, and the end of this process when rank 0 is gone."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.limit_s = FIRST_SILENCE_S
        self._stdin, self._stdout = stdin, stdout
        self._lock = threading.Lock()
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._heard = time.monotonic()
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def say(self, **message: Any) -> None:
        """Tell rank 0."""
        self._write(lines.line(**message))

    def hear(self) -> dict[str, Any]:
        """The next message of rank 0; waits for it."""
        return self._messages.get()

    def _write(self, text: bytes) -> None:
        with self._lock:
            try:
                self._stdout.write(text)
                self._stdout.flush()
            except OSError:
                _end("rank 0 no longer listens")

    def _read(self) -> None:
        for raw in self._stdin:
            self._heard = time.monotonic()
            message = lines.message(raw.decode("utf-8", errors="replace"))
            if message is not None:
                self._messages.put(message)
        _end("rank 0 is gone")

    def _beat(self) -> None:
        while True:
            asleep = time.monotonic()
            time.sleep(lines.BEAT_S)
            self._write(lines.beat())
            if time.monotonic() - asleep > lines.PAUSE_S:
                self._heard = time.monotonic()  # this process stood still, and heard nothing for that reason
            silent = time.monotonic() - self._heard
            if silent > self.limit_s:
                _end(f"rank 0 has been silent for {silent:.0f} s")


def main() -> int:
    """Take part in one training; the exit code as a stage's (mlx_tasks/errors.py)."""
    own_stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not print into the pipe
    line = Line(sys.stdin.buffer, own_stdout)
    try:
        _take_part(line)
    except BaseException as error:
        code, words = classify(error, Path.cwd())
        if code is ExitCode.UNKNOWN:
            traceback.print_exc()
        line.say(error=words, code=int(code))
        return int(code)
    return int(ExitCode.OK)


def _take_part(line: Line) -> None:
    machine = hardware.prepare()
    line.say(hello={"code": lines.code_digest(), "mlx": version("mlx"), "device": machine.kind, "pid": os.getpid()})
    job = line.hear()["job"]
    line.limit_s = job["timeout_s"]
    # Rank 0's own machine is held by rank 0 already.
    with contextlib.nullcontext() if job["here"] else locks.accelerator(machine, job["who"], wait_s=line.limit_s / 2):
        from mlx_tasks.hosts.rendezvous import Listener

        listener = Listener(job["address"], job["port"])
        line.say(port=listener.port)
        meeting = line.hear()["meet"]
        _meet(line, listener, meeting)
        line.hear()  # go
        _train(job, meeting, machine)


def _meet(line: Line, listener: Any, meeting: dict[str, Any]) -> None:
    """Try both connections of this rank and say which did not come about."""
    from mlx_tasks.hosts.rendezvous import dial

    addresses, rank, seconds = meeting["addresses"], meeting["rank"], meeting["seconds"]
    address, _, port = addresses[(rank + 1) % len(addresses)].rpartition(":")
    failed = dial(address, int(port), meeting["token"], seconds)
    met = listener.accept(meeting["token"], seconds)
    listener.close()
    line.say(met={"to": failed, "from": met})


def _train(job: dict[str, Any], meeting: dict[str, Any], machine: hardware.Hardware) -> None:
    from mlx_tasks.hosts.rendezvous import join
    from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
    from mlx_tasks.training.keys import named_key
    from mlx_tasks.training.memory import memory_errors
    from mlx_tasks.training.ring import Ring
    from mlx_tasks.training.teacher import named_schedule, teacher_learner

    micro_batch = min(machine.max_micro_batch, job["micro_batch"])
    model = UNet2DModel(UNet2DConfig.from_dict(job["network"]), key=named_key("replaced by rank 0's"))
    ring = Ring(*join(meeting["addresses"], meeting["rank"]))
    ring.agree(meeting["token"])
    schedule = named_schedule(job["noise_schedule"], job["zero_terminal_snr"])
    learner = teacher_learner(
        model, schedule, micro_batch=micro_batch, compiled=machine.kind != "cpu", ring=ring, **job["options"]
    )
    with memory_errors(micro_batch):
        learner.follow()


def _end(reason: str) -> None:
    with contextlib.suppress(OSError):
        print(f"ended: {reason}", file=sys.stderr, flush=True)
    os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the thread that reads stdin is in the middle of it
