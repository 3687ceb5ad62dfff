"""The failure kinds that someone acts on, and the exit code of each.

A stage runs as a process of its own, so its caller (Airflow, DVC, a shell) learns the kind from the exit code:
whoever retries looks at `RETRYABLE`, whoever reads a terminal looks at the message.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a stage's process says when it ends."""

    OK = 0
    UNKNOWN = 1
    BAD_INPUT = 10
    DIVERGED = 11
    OUT_OF_MEMORY = 12
    INTERRUPTED = 13
    CHECKPOINT = 14
    UNAVAILABLE = 15
    BUSY = 16
    TIMED_OUT = 17


RETRYABLE = frozenset(
    {
        ExitCode.UNKNOWN,
        ExitCode.OUT_OF_MEMORY,
        ExitCode.INTERRUPTED,
        ExitCode.CHECKPOINT,
        ExitCode.UNAVAILABLE,
        ExitCode.BUSY,
    }
)
"""Kinds for which running the stage again can help. A stage killed by a signal (negative or 128+) is retryable too."""


class StageError(Exception):
    """A failure with a kind. The message holds the rule, the value received and the fix."""

    exit_code = ExitCode.UNKNOWN


class DataError(StageError, ValueError):
    """The input (dataset, params, bundle) breaks a stated rule; running again changes nothing."""

    exit_code = ExitCode.BAD_INPUT


class CheckpointError(StageError):
    """A checkpoint cannot be written. The earlier ones stay; with room again, or elsewhere, the stage goes on."""

    exit_code = ExitCode.CHECKPOINT


class DivergedError(StageError):
    """Training produced a value that is not finite.

    Attributes:
        step: the optimiser step at which it was seen.
        last_finite_loss: the last finite loss reported before it, or None.
    """

    exit_code = ExitCode.DIVERGED

    def __init__(self, step: int, last_finite_loss: float | None, hint: str = "lower the learning rate") -> None:
        self.step = step
        self.last_finite_loss = last_finite_loss
        last = "none seen" if last_finite_loss is None else f"{last_finite_loss:.6g}"
        super().__init__(f"the loss is not finite at step {step}; last finite loss {last}; {hint}")


class OutOfMemoryError(StageError):
    """The device ran out of memory; a smaller micro-batch can help."""

    exit_code = ExitCode.OUT_OF_MEMORY


class InterruptedStageError(StageError):
    """The stage was told to stop, or whoever started it is gone; it goes on from its checkpoint."""

    exit_code = ExitCode.INTERRUPTED


class TimeLimitError(InterruptedStageError):
    """The stage took longer than its limit; only a person knows whether it hung or needs more (time_limits.py)."""

    exit_code = ExitCode.TIMED_OUT


class UnavailableError(StageError):
    """A service the stage cannot do without (MLflow, the store) does not answer."""

    exit_code = ExitCode.UNAVAILABLE


class BusyError(StageError):
    """Another process holds what this one needs (the accelerator, a workspace)."""

    exit_code = ExitCode.BUSY


class GateRefused(Exception):
    """A gate's "no" with its reasons. Not a failure: the stage stores the verdict and ends green."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(reasons))
