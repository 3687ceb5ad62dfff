"""Facts about quality levels: they are measured, never worse than they say, and travel in the bundle."""

from dataclasses import replace

import pytest
from registry_workspace import write_small_bundle

from mlx_tasks.errors import DataError
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.levels import Level
from mlx_tasks.registry import levels
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.levels import with_levels
from mlx_tasks.samplers.grids import log_snr_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.serving.plans import make_plan


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels") / "small"
    write_small_bundle(folder, steps=(999, 700, 400, 100))
    return read_bundle(folder)


def drawn_by(bundle, solver, calls, grid=log_snr_grid):
    """Images that these steps draw: what they are nearest to is known."""
    steps = grid(bundle.schedule, calls).timesteps
    sampler = replace(bundle.sampler, solver=solver, timesteps=steps, nfe=calls)
    return draw(
        replace(bundle, sampler=sampler), [i % 3 for i in range(128)], list(range(levels.SEED, levels.SEED + 128))
    )


def test_the_level_whose_images_these_are_is_found(bundle):
    said = []
    better = with_levels(bundle, drawn_by(bundle, "dpmpp_2m", 8), said.append).levels["best"]
    assert (better.solver, better.calls) == ("dpmpp_2m", 8) and better.frechet_distance == pytest.approx(0, abs=1e-6)
    faster = with_levels(bundle, drawn_by(bundle, "dpmpp_2m", 2)).levels["fast"]
    assert (faster.solver, faster.calls) == ("dpmpp_2m", 2) and faster.frechet_distance == pytest.approx(0, abs=1e-6)
    assert any("quality best: 8 calls" in line for line in said)


def test_no_level_is_offered_that_only_costs(bundle):
    own = draw(bundle, [i % 3 for i in range(128)], list(range(levels.SEED, levels.SEED + 128)))
    found = with_levels(bundle, own).levels  # the own steps are exact: nothing is better, nothing faster near
    assert "best" not in found and "fast" not in found


def test_levels_travel_in_the_bundle_and_make_plans(bundle, tmp_path):
    learned = LearnedSteps((3.0, 1.0, 0.0), (3.0, 1.0), ((), (0.1,)))
    told = {"fast": Level("learned", (800, 500), learned), "best": Level("heun", (999, 600, 200), None, 0.1)}
    write_bundle(tmp_path / "b", bundle.model, bundle.schedule, replace(bundle.sampler, levels=told))
    again = read_bundle(tmp_path / "b")
    assert again.sampler.levels == told
    assert make_plan(again, "fast").steps == learned and make_plan(again, "low") == make_plan(again, "fast")
    assert make_plan(again, "best").solver == "heun" and again.sampler.levels["best"].calls == 5
    assert make_plan(again, "balanced") == make_plan(again)
    values = again.sampler.to_dict()
    del values["levels"]
    assert Sampler.from_dict(values).levels == {}  # a bundle from before there were any


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"superb": {"solver": "ddim", "timesteps": [5]}}, "levels must map names among fast"),
        ({"fast": {"solver": "magic", "timesteps": [5]}}, "solver must be one of"),
        ({"fast": {"solver": "ddim", "timesteps": [5, 7]}}, "strictly falling"),
        ({"fast": {"timesteps": [5]}}, "level 'fast' must hold"),
        ({"fast": {"solver": "learned", "timesteps": [5]}}, "solver must be one of"),
    ],
)
def test_levels_that_are_none_are_refused(bundle, wrong, message):
    with pytest.raises(DataError, match=message):
        Sampler.from_dict(bundle.sampler.to_dict() | {"levels": wrong})


def test_a_level_above_the_schedule_is_refused(bundle, tmp_path):
    with pytest.raises(DataError, match="below 1000, got 1000"):
        write_bundle(
            tmp_path / "b",
            bundle.model,
            bundle.schedule,
            replace(bundle.sampler, levels={"fast": Level("ddim", (1000,))}),
        )
    assert not (tmp_path / "b").exists()
