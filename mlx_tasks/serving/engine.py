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
from mlx_tasks.serving.rows import exact_multiple, padded

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

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
    def calls(self) -> int:
        """Network calls of an image, guidance not counted."""
        if isinstance(self.steps, LearnedSteps):
            return self.steps.num_steps
        return find_solver(self.solver).calls(self.steps.num_steps)

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
        strip: how many of the estimates on the way are wanted, evenly from the first to the last.
        cancelled: set from anywhere; its rows leave the batch before the next network call.
        rank: the lower, the sooner it gets rows; equal ones by age.
    """

    plan: Plan
    labels: Sequence[int]
    seeds: Sequence[int]
    strip: int = 0
    cancelled: bool = False
    rank: int = 0

    @property
    def rows(self) -> int:
        """Rows of a network call that it takes."""
        return len(self.seeds) * (self.plan.branches if _classed(self) else 1)

    @property
    def evaluations(self) -> int:
        """Network evaluations of all its images, guidance included."""
        return self.rows * self.plan.calls


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
    def rank(self) -> int:
        """That of the job which comes first."""
        return min((job.rank for job in self.jobs if not job.cancelled), default=0)

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
        took: the jobs of the last network call, with the rows of each.
    """

    def __init__(self, bundle: Bundle, most_rows: int = 32, measured: tuple[int, bool] | None = None) -> None:
        """measured: `exact_multiple` of the bundle, where it is known."""
        self.bundle = bundle
        self.most_rows = most_rows
        self.multiple, self.exact = measured or exact_multiple(bundle, most_rows)
        self.calls = self.rows = 0
        self.took: list[tuple[Job, int]] = []
        self._runs: list[_Run] = []

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._runs)

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.bundle.sampler.resolution**2

    def admit(self, jobs: Iterable[Job]) -> list[Finished]:
        """Start jobs; those that cannot even start are returned with their error."""
        groups: list[list[Job]] = []
        for job in jobs:
            for group in groups:
                rows = (sum(len(one.seeds) for one in group) + len(job.seeds)) * job.plan.branches
                alike = group[0].strip == job.strip and _classed(group[0]) == _classed(job)
                if alike and group[0].plan == job.plan and rows <= self.most_rows:
                    group.append(job)
                    break
            else:
                groups.append([job])
        ended: list[Finished] = []
        for group in groups:
            ended += self._start(group)
        return ended

    def step(self) -> list[Finished]:
        """One network call for the runs of lowest rank that fit into it; the jobs that ended with it."""
        self.sweep()
        ended: list[Finished] = []
        chosen: list[tuple[_Run, list[int] | None]] = []
        rows, self.took = 0, []
        for run in sorted(self._runs, key=lambda run: run.rank):
            live = run.live()
            assert run.call is not None
            wanted = len(run.call.x) // run.size * len(live)
            if not chosen or rows + wanted <= self.most_rows:
                chosen.append((run, None if len(live) == run.size else live))
                rows += wanted
                each = len(run.call.x) // run.size
                self.took += [(job, each * len(job.seeds)) for job in run.jobs if not job.cancelled]
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

    def sweep(self) -> None:
        """End the runs that nobody waits for any more."""
        for run in [run for run in self._runs if not run.live()]:
            run.task.throw(GreenletExit)
            self._runs.remove(run)

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
        wanted = kept_of(plan.steps.num_steps, run.jobs[0].strip)

        def keep(step: int, sigma: float, estimate: mx.array) -> None:
            if step in wanted:
                run.strip.append((sigma, estimate))

        drawn = sample(
            denoise,
            mx.vmap(lambda one: mx.random.normal(shape, key=one))(_keys(seeds, 0)),
            plan.steps,
            solver,
            key,
            keep if wanted else None,
        )
        images, seconds = to_uint8(np.array(drawn.images)), time.perf_counter() - run.began
        strip = np.stack([to_uint8(np.array(one)) for _, one in run.strip], axis=1) if wanted else None
        ended, row = [], 0
        for job in run.jobs:
            rows = slice(row, row + len(job.seeds))
            row += len(job.seeds)
            if job.cancelled:
                continue
            own, levels = None if strip is None else strip[rows], tuple(sigma for sigma, _ in run.strip)
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


def kept_of(steps: int, count: int) -> frozenset[int]:
    """Which of a run's steps a strip of so many pictures shows: all of them where there are no more."""
    return frozenset(round(k) for k in np.linspace(0, steps - 1, count))


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
