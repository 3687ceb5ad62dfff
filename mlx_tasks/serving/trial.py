"""A version is tried out in a process of its own, so that whatever it does there, the server goes on.

The child is started afresh, never forked. It reads the version as the server would and draws with it; this side watches
how long it takes and how much memory it holds (macOS has no limit on memory that the kernel would keep).

    python -m mlx_tasks.serving.trial     reads a request from stdin, writes its answer to the file named there
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.models.limits import memory_limit
from mlx_tasks.serving.library import Served
from mlx_tasks.supervision import PARENT_VARIABLE, ParentWatch, parents_for_child

LOOK_S = 0.05
BESIDE = 1 << 30
"""Bytes that the interpreter, MLX and a BLAS take beside what the version asks for."""
_SECRET = re.compile("KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class TrialLimits:
    """What a trial may take.

    Attributes:
        seconds: from the child's start to its answer.
        memory: bytes for the version.
    """

    seconds: float = 300.0
    memory: int = 0

    @property
    def bytes(self) -> int:
        """Of the whole child."""
        return BESIDE + (self.memory or memory_limit())


def try_out(
    served: Served, most_rows: int, stopped: threading.Event, limits: TrialLimits | None = None
) -> tuple[int, bool]:
    """Let a child load a version and draw with it; what `engine.exact_multiple` found there.

    stopped: ends the child, where the server ends.
    Raises: DataError where the version may not serve: it is broken, crashed the child, took too long or too much
        memory; UnavailableError where that cannot be said.
    """
    limits = limits or TrialLimits()
    with tempfile.TemporaryDirectory(prefix="mlx-tasks-trial-") as place, open(f"{place}/stderr", "w+b") as errors:
        answer = Path(place) / "answer.json"
        request = {"served": asdict(served), "rows": most_rows, "answer": str(answer), "memory": limits.bytes}
        environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
        child = subprocess.Popen(
            [sys.executable, "-m", "mlx_tasks.serving.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**environment, PARENT_VARIABLE: parents_for_child()},
            start_new_session=True,
        )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(json.dumps(request).encode())
            held = _watch(child, served, limits, stopped)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if answer.is_file():
            return _verdict(json.loads(answer.read_text(encoding="utf-8")))
        raise _no_answer(child.returncode, held, limits, errors)


def _watch(child: subprocess.Popen, served: Served, limits: TrialLimits, stopped: threading.Event) -> int:
    """Wait for the child's end; the most bytes it held.  Raises: DataError where it passes a limit."""
    began, most = time.monotonic(), 0
    while child.poll() is None:
        if stopped.wait(LOOK_S):
            raise UnavailableError("the server is stopping")
        most = max(most, _held(child.pid))
        if most > limits.bytes:
            raise DataError(
                f"it holds more than {limits.bytes / 2**30:.3g} GiB of memory when it is loaded, which is the limit "
                "(--trial-memory)"
            )
        if time.monotonic() - began > limits.seconds:
            raise DataError(f"it was not ready within {limits.seconds:g} s, which is the limit (--trial-time)")
    return most


def _held(pid: int) -> int:
    """Bytes of memory that a process and its children hold now."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total


def _verdict(told: dict[str, Any]) -> tuple[int, bool]:
    match told["kind"]:
        case "passed":
            return told["multiple"], told["exact"]
        case "unavailable":
            raise UnavailableError(told["message"])
        case _:
            raise DataError(told["message"])


def _no_answer(code: int, held: int, limits: TrialLimits, errors: IO[bytes]) -> Exception:
    """What to raise for a child that ended without a word."""
    errors.seek(0)
    words = errors.read(1 << 20).decode(errors="replace").strip()[-300:]
    if code >= 0:  # it never came to the version: an installation that does not start, no memory to start in
        return UnavailableError(f"the process that tries versions out ended with exit code {code}: {words}")
    name = signal.Signals(-code).name
    if code == -signal.SIGTERM or (code == -signal.SIGKILL and held < limits.bytes / 2):
        return UnavailableError(f"the process that tries versions out was ended by {name} from outside")
    return DataError(f"it ended the process that tried it out by {name}, which held {held / 2**30:.3g} GiB: {words}")


def main() -> None:
    """The child: try one version out, and write the verdict."""
    request = json.load(sys.stdin)
    with contextlib.suppress(OSError):
        os.nice(5)  # what serves goes first
    with ParentWatch():
        told = _try(Served(**request["served"]), request["rows"], request["memory"])
        place = Path(request["answer"])
        coming = place.with_suffix(".coming")
        coming.write_text(json.dumps(told), encoding="utf-8")
        coming.rename(place)


def _try(served: Served, rows: int, memory: int) -> dict[str, Any]:
    from mlx_tasks import hardware

    hardware.prepare()
    _limit(memory)
    try:
        from mlx_tasks.serving.loading import load

        engine = load(served, rows).engine
        return {"kind": "passed", "multiple": engine.multiple, "exact": engine.exact}
    except (UnavailableError, OSError, ImportError) as error:
        return {"kind": "unavailable", "message": f"{type(error).__name__}: {error}"}
    except DataError as error:
        return {"kind": "refused", "message": str(error)}
    except MemoryError as error:
        return {"kind": "refused", "message": f"there is no memory for it: {error}"}
    except Exception as error:
        return {"kind": "refused", "message": f"{type(error).__name__}: {error}"}


def _limit(memory: int) -> None:
    """Ask the kernel and MLX to keep the limit too: between two looks much can be taken."""
    import mlx.core as mx

    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    mx.set_memory_limit(memory)


if __name__ == "__main__":
    main()
