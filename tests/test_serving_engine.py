"""Facts about batching: nobody's image depends on who asked at the same time, and nobody pays for who left."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from registry_workspace import write_small_bundle

from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.errors import DataError, DivergedError
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.models.levels import Level
from mlx_tasks.registry.draw import draw
from mlx_tasks.samplers.bundle_sampler import bundle_noise, denoising_strip
from mlx_tasks.serving.engine import Engine, Job, Plan, exact_multiple
from mlx_tasks.serving.plans import QUALITIES, make_plan, plan_name


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "small"
    write_small_bundle(folder)
    return read_bundle(folder)


def finish(engine, ended=()):
    ended = list(ended)
    while engine.busy:
        ended += engine.step()
    return {finished.job: finished for finished in ended}


def alone(bundle, job):
    engine, again = Engine(bundle), Job(job.plan, job.labels, job.seeds, job.strip)
    return finish(engine, engine.admit([again]))[again]


def various(bundle):
    """Requests that differ in everything that a request may choose."""
    chosen = [
        make_plan(bundle),
        make_plan(bundle, steps=5),
        make_plan(bundle, steps=7, solver="unipc_2", grid="karras", guidance=3.0),
        make_plan(bundle, steps=4, solver="heun", grid="uniform"),
        make_plan(bundle, steps=6, solver="ddpm"),
        Plan(make_plan(bundle, steps=6).steps, "dpmpp_2m", Guidance(2.0, interval=(0.5, 5.0))),
    ]
    jobs = [Job(plan, [i % 3], [100 + i]) for i, plan in enumerate(chosen)]
    return [*jobs, Job(chosen[0], [2, 2, 2], [7, 8, 9]), Job(chosen[2], [-1], [11]), Job(chosen[1], [1], [12])]


def test_an_image_has_the_same_bits_whatever_shares_its_batch(bundle):
    engine, jobs = Engine(bundle), various(bundle)
    assert engine.exact
    ended = finish(engine, engine.admit(jobs))
    assert set(ended) == set(jobs)
    for job in jobs:
        expected = alone(bundle, job)
        np.testing.assert_array_equal(ended[job].images, expected.images)
        assert ended[job].nfe == expected.nfe
    lone_calls = sum(alone(bundle, job).nfe for job in jobs)
    assert engine.calls <= 8 < lone_calls / 4  # as many as the longest run takes


def test_the_bundles_own_way_draws_the_bundles_own_images(bundle):
    engine = Engine(bundle)
    jobs = [Job(Plan.own(bundle), [label], [50 + i]) for i, label in enumerate([0, 1, 2, -1])]
    ended = finish(engine, engine.admit(jobs))
    for job in jobs:
        np.testing.assert_array_equal(ended[job].images, draw(bundle, job.labels, job.seeds))


def test_who_comes_later_joins_at_the_next_call(bundle):
    engine = Engine(bundle)
    early, late = Job(make_plan(bundle, steps=8), [0], [1]), Job(make_plan(bundle, steps=3), [1], [2])
    ended = engine.admit([early])
    for _ in range(3):
        ended += engine.step()
    ended += engine.admit([late])
    both = finish(engine, ended)
    assert engine.calls == 8 and engine.rows == 8 + 3
    for job in (early, late):
        np.testing.assert_array_equal(both[job].images, alone(bundle, job).images)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_who_leaves_costs_nothing_from_the_next_call_on(bundle, guidance):
    plan = make_plan(bundle, steps=6, guidance=guidance)
    rows = plan.branches
    engine, stays, leaves = Engine(bundle), Job(plan, [0], [1]), Job(plan, [1, 2], [2, 3])
    ended = engine.admit([leaves, stays]) + engine.step()
    leaves.cancelled = True
    both = finish(engine, ended)
    assert set(both) == {stays} and engine.rows == rows * (3 + 5)
    np.testing.assert_array_equal(both[stays].images, alone(bundle, stays).images)
    gone = Job(plan, [0], [4])
    engine.admit([gone])
    gone.cancelled = True
    assert finish(engine) == {} and engine.rows == rows * (3 + 5)


def test_a_call_holds_no_more_rows_than_it_may_and_the_oldest_go_first(bundle):
    engine = Engine(bundle, most_rows=4)
    plan, seen = make_plan(bundle, steps=3), []
    jobs = [Job(plan, [0] * n, list(range(10 * n, 11 * n))) for n in (3, 2, 6, 1)]
    ended = engine.admit(jobs)
    before = 0
    while engine.busy:
        new = engine.step()
        seen.append(engine.rows - before)
        before = engine.rows
        ended += new
    assert max(seen) == 6 and sum(seen) == 3 * 12  # the job of six goes alone
    assert next(finished.job for finished in ended) is jobs[0] and {one.job for one in ended} == set(jobs)
    for finished in ended:
        np.testing.assert_array_equal(finished.images, alone(bundle, finished.job).images)


def test_one_requests_failure_is_its_own(bundle):
    def poisoned(x, t, labels):
        out = bundle.model(x, t, labels)
        return mx.where((labels == 2).reshape(-1, 1, 1, 1), mx.array(float("nan")), out)

    poisoned.config = bundle.model.config
    engine = Engine(replace(bundle, model=poisoned))
    good, bad = Job(Plan.own(bundle), [0], [1]), Job(Plan.own(bundle), [2], [2])
    ended = finish(engine, engine.admit([good, bad]))
    assert isinstance(ended[bad].error, DivergedError) and "after step 0" in str(ended[bad].error)
    np.testing.assert_array_equal(ended[good].images, alone(bundle, good).images)


def test_a_strip_shows_the_estimates_on_the_way(bundle):
    job, other = Job(Plan.own(bundle), [1], [5], strip=12), Job(Plan.own(bundle), [1], [6])
    engine = Engine(bundle)
    ended = finish(engine, engine.admit([other, job]))
    expected = denoising_strip(bundle, bundle_noise(bundle, 5, 1), [1])
    assert ended[job].levels == pytest.approx(expected.sigmas[:-1]) and ended[other].strip is None
    from mlx_tasks.data.loader import to_uint8

    np.testing.assert_array_equal(ended[job].strip[0], to_uint8(np.array(expected.images[0, :-1])))


def test_a_strip_keeps_only_what_it_shows(bundle):
    plan = make_plan(bundle, steps=40)
    engine, job = Engine(bundle), Job(plan, [1], [5], strip=3)
    finished = finish(engine, engine.admit([job]))[job]
    whole = Job(plan, [1], [5], strip=40)
    every = finish(engine, engine.admit([whole]))[whole]
    assert finished.strip.shape[:2] == (1, 3) and every.strip.shape[:2] == (1, 40)
    assert finished.levels == tuple(every.levels[k] for k in (0, 20, 39))
    np.testing.assert_array_equal(finished.strip, every.strip[:, [0, 20, 39]])


def test_work_is_what_the_network_computes(bundle):
    """What is counted before a request is drawn is what its rows are afterwards."""
    for job in various(bundle):
        engine = Engine(bundle)
        drawn = finish(engine, engine.admit([job]))[job]
        assert engine.rows == drawn.nfe * len(job.seeds)
        if isinstance(job.plan.guidance, Guidance):  # on an interval, where it takes less
            assert engine.rows < job.evaluations
        else:
            assert engine.rows == job.evaluations


def test_who_has_the_lower_rank_goes_first_and_the_other_goes_on_after_it(bundle):
    engine = Engine(bundle, most_rows=2)
    plan = make_plan(bundle, steps=3)
    large, small = Job(plan, [0, 1], [1, 2], rank=0), Job(plan, [2], [3])
    ended = engine.admit([large]) + engine.step()
    large.rank, small.rank = 1, 0
    ended += engine.admit([small])
    for _ in range(3):
        ended += engine.step()
    assert [one.job for one in ended] == [small] and engine.took == [(small, 1)]
    ended = finish(engine, ended)
    for job in (large, small):
        np.testing.assert_array_equal(ended[job].images, alone(bundle, job).images)


def test_the_multiple_that_makes_rows_independent_is_measured(bundle):
    def by_tiles(size):
        """A network whose rows change wherever the batch is no multiple of `size`, as a tiled product's do."""

        def model(x, t, labels):
            return bundle.model(x, t, labels) + (0.0 if len(x) % size == 0 else 1e-3 * len(x))

        model.config = bundle.model.config
        return replace(bundle, model=model)

    def by_neighbours(x, t, labels):
        return bundle.model(x, t, labels) + 1e-3 * x.mean()

    by_neighbours.config = bundle.model.config
    assert exact_multiple(bundle, 32) == (1, True)
    assert exact_multiple(by_tiles(8), 32) == (8, True)
    assert exact_multiple(by_tiles(1000), 32) == (32, True)  # every call is of one size then
    assert exact_multiple(replace(bundle, model=by_neighbours), 32) == (1, False)
    engine, job = Engine(by_tiles(8)), Job(Plan.own(bundle), [0], [3])
    np.testing.assert_array_equal(finish(engine, engine.admit([job]))[job].images, alone(bundle, job).images)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quality": "superb"}, "quality: one of fast, balanced, best"),
        ({"quality": "fast", "steps": 3}, "either quality or steps"),
        ({"solver": "heun"}, "steps: a solver or a grid goes with"),
        ({"steps": 3, "solver": "euler_b"}, "solver: one of ddim"),
        ({"steps": 3, "solver": "learned"}, "solver: one of ddim"),
        ({"steps": 3, "grid": "oblong"}, "grid: one of uniform"),
        ({"steps": 201}, "1 to 200"),
        ({"steps": 0}, "1 to 200"),
    ],
)
def test_plans_that_cannot_be_drawn_are_refused_by_name(bundle, asked, message):
    with pytest.raises(DataError, match=message):
        make_plan(bundle, **asked)


def test_a_level_is_its_own_steps_and_a_missing_one_is_the_models_own(bundle):
    levels = {"fast": Level("ddim", (700,)), "best": Level("dpmpp_2m", (999, 800, 500, 200))}
    with_levels = replace(bundle, sampler=replace(bundle.sampler, levels=levels))
    for word, level in QUALITIES.items():
        plan, name = make_plan(with_levels, word), plan_name(with_levels, word)
        assert (plan, name) == (
            (Plan(levels[level].steps(bundle.schedule), levels[level].solver, 1.0), level)
            if level in levels
            else (Plan.own(bundle), "own")
        )
    assert plan_name(with_levels) == "own" and plan_name(with_levels, "fast", guidance=2.0) == "custom"


def test_guidance_needs_an_empty_class(bundle):
    without = replace(bundle, sampler=replace(bundle.sampler, null_label=None))
    assert make_plan(without, guidance=1.0).branches == 1
    with pytest.raises(DataError, match=r"only 1\.0, got 2"):
        make_plan(without, guidance=2.0)
