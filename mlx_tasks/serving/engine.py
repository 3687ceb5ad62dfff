"""Images of many requests drawn together: each run is a sampler of its own, and they meet at the network.

A run (requests of one plan that came together) is a greenlet in which `samplers.driver.sample` works as it does
anywhere. Where it calls the network, it stops; the engine gathers the calls of all runs, whatever their steps, noise
levels, classes or guidance, into one batch, and lets each go on with its own rows. A run that comes later joins at the
next call. Since a network's rows do not depend on each other (`RowLinear`), nobody's image does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from greenlet import GreenletExit, getcurrent, greenlet

from mlx_tasks.data.loader import to_uint8
from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.samplers.bundle_sampler import own_steps
from mlx_tasks.samplers.denoiser import network_denoiser
from mlx_tasks.samplers.driver import sample
from mlx_tasks.samplers.grids import Grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import find_solver

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

MULTIPLES = (1, 2, 4, 8, 16, 32)
"""Batch sizes are rounded up to the first of these that makes a row's bits independent of the rest."""
STOCHASTIC_INDEX = 1
"""Index in an image's key of the noise that a stochastic solver draws; its first noise has 0, as in `bundle_noise`."""


@dataclass(frozen=True)
class Plan:
    """How images are drawn. Requests of equal plans that come together are one run.

    Attributes:
        steps: noise levels, or learned steps.
        solver: name in `samplers.solvers`; ignored for learned steps.
        guidance: of images with a class; those of any class are drawn unguided.
    """

    steps: Grid | LearnedSteps
    solver: str
    guidance: Guidance | float

    @classmethod
    def own(cls, bundle: Bundle) -> Plan:
        """What the bundle says."""
        return cls(own_steps(bundle), bundle.sampler.solver, bundle.sampler.guidance_scale)

    @property
    def branches(self) -> int:
        """Rows that an image takes in a network's batch."""
        return self.full_guidance.evaluations

    @property
    def full_guidance(self) -> Guidance:
        """Guidance with all of its numbers."""
        return self.guidance if isinstance(self.guidance, Guidance) else Guidance(float(self.guidance))


@dataclass(eq=False)
class Job:
    """One request's images.

    Attributes:
        plan: how they are drawn.
        labels: class of each image; -1 for any.
        seeds: of each image.
        strip: whether the estimates on the way are wanted.
        cancelled: set from anywhere; its rows leave the batch before the next network call.
    """

    plan: Plan
    labels: Sequence[int]
    seeds: Sequence[int]
    strip: bool = False
    cancelled: bool = False


@dataclass(frozen=True)
class Finished:
    """A job that ended.

    Attributes:
        job: which.
        images: (N, H, W, C) uint8; none after an error.
        nfe: network evaluations of an image.
        seconds: from its first network call to its end.
        strip: (N, K, H, W, C) uint8 estimates on the way, where wanted.
        levels: the K noise levels they were made at.
        error: why there are no images.
    """

    job: Job
    images: np.ndarray | None = None
    nfe: int = 0
    seconds: float = 0.0
    strip: np.ndarray | None = None
    levels: tuple[float, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True)
class _Call:
    """A run's call of the network that waits: x (B, H, W, C), t (B,), labels (B,) or None."""

    x: mx.array
    t: mx.array
    labels: mx.array | None


@dataclass(eq=False)
class _Run:
    jobs: list[Job]
    began: float
    task: Any = None
    call: _Call | None = None
    strip: list[tuple[float, mx.array]] = field(default_factory=list)

    def live(self) -> list[int]:
        """Rows (of its images) that somebody waits for."""
        owners = [job for job in self.jobs for _ in job.seeds]
        return [row for row, job in enumerate(owners) if not job.cancelled]

    @property
    def size(self) -> int:
        return sum(len(job.seeds) for job in self.jobs)


class Engine:
    """Draws with one bundle. Everything happens in the thread that made it.

    Attributes:
        bundle: what it draws with.
        most_rows: rows of one network call; a run that is larger goes alone.
        multiple: batch sizes are multiples of it.
        exact: whether a row's bits are the same in any batch, measured on this device when the engine was made.
        calls, rows: network calls made and rows computed for somebody, in all.
    """

    def __init__(self, bundle: Bundle, most_rows: int = 32) -> None:
        self.bundle = bundle
        self.most_rows = most_rows
        self.multiple, self.exact = exact_multiple(bundle, most_rows)
        self.calls = self.rows = 0
        self._runs: list[_Run] = []

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._runs)

    @property
    def images(self) -> int:
        """Images under way."""
        return sum(run.size for run in self._runs)

    def admit(self, jobs: Iterable[Job]) -> list[Finished]:
        """Start jobs; those that cannot even start are returned with their error."""
        groups: list[list[Job]] = []
        for job in jobs:
            for group in groups:
                rows = (sum(len(one.seeds) for one in group) + len(job.seeds)) * job.plan.branches
                if group[0].plan == job.plan and _classed(group[0]) == _classed(job) and rows <= self.most_rows:
                    group.append(job)
                    break
            else:
                groups.append([job])
        ended: list[Finished] = []
        for group in groups:
            ended += self._start(group)
        return ended

    def step(self) -> list[Finished]:
        """One network call for the oldest runs that fit into it; the jobs that ended with it."""
        ended: list[Finished] = []
        chosen: list[tuple[_Run, list[int] | None]] = []
        rows = 0
        for run in list(self._runs):
            live = run.live()
            if not live:
                run.task.throw(GreenletExit)
                self._runs.remove(run)
                continue
            assert run.call is not None
            wanted = len(run.call.x) // run.size * len(live)
            if not chosen or rows + wanted <= self.most_rows:
                chosen.append((run, None if len(live) == run.size else live))
                rows += wanted
        if not chosen:
            return ended
        calls = [_taken(run, live) for run, live in chosen]
        try:
            outputs = self._evaluate(calls)
        except Exception as error:
            return ended + [finished for run, _ in chosen for finished in self._fail(run, error)]
        for (run, live), out in zip(chosen, outputs, strict=True):
            ended += self._resume(run, _put_back(out, run, live))
        return ended

    def drop(self) -> list[Job]:
        """End every run; the jobs that were under way."""
        jobs = [job for run in self._runs for job in run.jobs]
        for run in self._runs:
            run.task.throw(GreenletExit)
        self._runs.clear()
        return jobs

    def _start(self, jobs: list[Job]) -> list[Finished]:
        run = _Run(jobs, time.perf_counter())
        run.task = greenlet(lambda: self._draw(run))
        self._runs.append(run)
        return self._resume(run)

    def _resume(self, run: _Run, *outputs: mx.array) -> list[Finished]:
        """Let a run go on to its next call, or to its end."""
        try:
            got = run.task.switch(*outputs)
        except Exception as error:
            return self._fail(run, error)
        if isinstance(got, _Call):
            run.call = got
            return []
        self._runs.remove(run)
        return got

    def _fail(self, run: _Run, error: Exception) -> list[Finished]:
        """One job's failure is its own: the others of its run begin again, each alone."""
        if not run.task.dead:
            run.task.throw(GreenletExit)
        self._runs.remove(run)
        if len(run.jobs) == 1:
            return [Finished(run.jobs[0], error=error)]
        return [finished for job in run.jobs if not job.cancelled for finished in self._start([job])]

    def _draw(self, run: _Run) -> list[Finished]:
        """A run's body, in its greenlet: the jobs with their images."""
        plan, seeds = run.jobs[0].plan, [seed for job in run.jobs for seed in job.seeds]
        labels = [label for job in run.jobs for label in job.labels]
        sampler = self.bundle.sampler
        empty = sampler.null_label
        chosen = None
        if self.bundle.model.config.num_class_embeds is not None:
            chosen = mx.array([label if label >= 0 else empty or 0 for label in labels], dtype=mx.int32)
        guidance = plan.full_guidance if _classed(run.jobs[0]) else 1.0
        # The proxy stands for the network: it hands the call to the engine, and comes back with its rows.
        engine = getcurrent().parent
        assert engine is not None
        denoise = network_denoiser(
            lambda x, t, labels: engine.switch(_Call(x, t, labels)), self.bundle.schedule, chosen, guidance, empty
        )
        shape = (sampler.resolution, sampler.resolution, sampler.channels)
        solver = "learned" if isinstance(plan.steps, LearnedSteps) else plan.solver
        key = _keys(seeds, STOCHASTIC_INDEX) if find_solver(solver).stochastic else None
        wanted = any(job.strip for job in run.jobs)
        drawn = sample(
            denoise,
            mx.vmap(lambda one: mx.random.normal(shape, key=one))(_keys(seeds, 0)),
            plan.steps,
            solver,
            key,
            (lambda _, sigma, estimate: run.strip.append((sigma, estimate))) if wanted else None,
        )
        images, seconds = to_uint8(np.array(drawn.images)), time.perf_counter() - run.began
        strip = np.stack([to_uint8(np.array(one)) for _, one in run.strip], axis=1) if wanted else None
        ended, row = [], 0
        for job in run.jobs:
            rows = slice(row, row + len(job.seeds))
            row += len(job.seeds)
            if job.cancelled:
                continue
            own = strip[rows] if strip is not None and job.strip else None
            levels = tuple(sigma for sigma, _ in run.strip) if job.strip else ()
            ended.append(Finished(job, images[rows], drawn.nfe, seconds, own, levels))
        return ended

    def _evaluate(self, calls: list[_Call]) -> list[mx.array]:
        """The network's outputs for each call's rows, all computed in one batch."""
        count = sum(len(call.x) for call in calls)
        labels = None if calls[0].labels is None else mx.concatenate([call.labels for call in calls])  # type: ignore[misc]
        out = padded(
            self.bundle.model,
            mx.concatenate([call.x for call in calls]),
            mx.concatenate([call.t for call in calls]),
            labels,
            self.multiple,
        )
        mx.eval(out)
        self.calls, self.rows = self.calls + 1, self.rows + count
        edges = np.cumsum([0, *(len(call.x) for call in calls)]).tolist()
        return [out[a:b] for a, b in pairwise(edges)]


def padded(model: Any, x: mx.array, t: mx.array, labels: mx.array | None, multiple: int) -> mx.array:
    """The network's output for x (B, H, W, C), computed in a batch of a multiple of `multiple` rows."""
    missing = -len(x) % multiple
    if missing == 0:
        return model(x, t, labels)
    rows = mx.minimum(mx.arange(len(x) + missing), len(x) - 1)
    return model(x[rows], t[rows], None if labels is None else labels[rows])[: len(x)]


def exact_multiple(bundle: Bundle, most_rows: int) -> tuple[int, bool]:
    """(multiple, exact): the least multiple of rows with which an image's bits are the same in every batch.

    It is measured: matrix products take other paths at other sizes, and which depends on the device. Where no multiple
    does it, (1, False): images of one seed may then differ by rounding, at most one grey level.
    """
    sampler, model = bundle.sampler, bundle.model
    most = max(most_rows, MULTIPLES[2])
    generator = np.random.Generator(np.random.PCG64(0))
    shape = (most, sampler.resolution, sampler.resolution, sampler.channels)
    x = mx.array(generator.normal(size=shape).astype(np.float32))
    t = mx.array(generator.uniform(1, bundle.schedule.num_train_timesteps - 1, most).astype(np.float32))
    names = model.config.num_class_embeds
    labels = None if names is None else mx.array(np.arange(most) % names)
    sizes = [size for size in (1, 3, 5, most // 2 - 1, most - 1) if size > 0]
    for multiple in (m for m in MULTIPLES if m <= most):
        whole = np.array(padded(model, x, t, labels, multiple))
        if all(
            np.array_equal(
                np.array(padded(model, x[:n], t[:n], None if labels is None else labels[:n], multiple)), whole[:n]
            )
            for n in sizes
        ):
            return multiple, True
    return 1, False


def _classed(job: Job) -> bool:
    """Whether all images of a job are of a class; those of any class run without guidance."""
    return all(label >= 0 for label in job.labels)


def _keys(seeds: Sequence[int], index: int) -> mx.array:
    return mx.array([[seed, index] for seed in seeds], dtype=mx.uint32)


def _rows(run: _Run, live: list[int]) -> mx.array:
    """Rows of a run's call that belong to live images: a guided call holds its images twice."""
    assert run.call is not None
    return mx.array([half + row for half in range(0, len(run.call.x), run.size) for row in live])


def _taken(run: _Run, live: list[int] | None) -> _Call:
    """A run's call, or the live rows of it."""
    call = run.call
    assert call is not None
    if live is None:
        return call
    rows = _rows(run, live)
    return _Call(call.x[rows], call.t[rows], None if call.labels is None else call.labels[rows])


def _put_back(out: mx.array, run: _Run, live: list[int] | None) -> mx.array:
    """Outputs at the places of a run's rows; zeros where nobody waits."""
    if live is None:
        return out
    assert run.call is not None
    whole = mx.zeros((len(run.call.x), *out.shape[1:]), dtype=out.dtype)
    whole[_rows(run, live)] = out
    return whole
