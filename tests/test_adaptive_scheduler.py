"""Steps by budget and by class: which sampler is taken, whom a quality is promised, and that the promise holds."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_pipeline import QUICK, quiet

from mlx_tasks import AdaptiveScheduler, DiffusionPipeline
from mlx_tasks.data.loader import to_uint8
from mlx_tasks.errors import DataError
from mlx_tasks.samplers import bundle_noise, sample_bundle

pytest_plugins = ["small_pipeline"]


@pytest.fixture(scope="module")
def scheduler(pipe):
    return AdaptiveScheduler.fit(pipe, nfe=(2, 3), tell=quiet, calibration=24, **QUICK)


def test_the_scheduler_takes_the_most_that_fits_and_comes_back_from_disk(pipe, scheduler, tmp_path):
    assert sorted(scheduler.samplers) == [2, 3] and scheduler.errors[3] < scheduler.errors[2]
    fitted = DiffusionPipeline(pipe.bundle, scheduler)
    assert fitted([0], nfe=9).nfe == 3 and fitted([0], nfe=2).nfe == 2
    scheduler.save(tmp_path / "s.json")
    again = AdaptiveScheduler.load(tmp_path / "s.json")
    assert again.samplers == dict(scheduler.samplers) and again.errors == dict(scheduler.errors)
    with pytest.raises(DataError, match=r"learned for \[2, 3\] evaluations, got a budget of 1"):
        fitted([0], nfe=1)
    with pytest.raises(DataError, match="nfe needs a scheduler"):
        pipe([0], nfe=4)
    (tmp_path / "bad.json").write_text('{"4": {}}')
    with pytest.raises(DataError, match="no saved AdaptiveScheduler"):
        AdaptiveScheduler.load(tmp_path / "bad.json")


def with_errors(held_out):
    """A scheduler that knows these errors: {evaluations: (classes, N)}."""
    return AdaptiveScheduler({}, {}, {nfe: np.asarray(errors, float) for nfe, errors in held_out.items()})


def test_each_class_takes_the_fewest_that_are_good_enough():
    ranks = np.arange(1, 40) / 100  # 39 noises: at 90 % coverage (missed + 1) / 40 <= 0.1 allows three misses
    made = with_errors({4: [ranks, 2 * ranks, 4 * ranks], 6: [ranks / 2, ranks, 2 * ranks], 8: [ranks / 4] * 3})
    assert made.needed(0.36, 0.9).tolist() == [4, 6, 8]
    assert made.needed(0.3599, 0.9).tolist() == [6, 8, 8]
    assert made.needed(4 * 0.36, 0.9).tolist() == [4, 4, 4]
    with pytest.raises(DataError, match=r"class 0: 8 evaluations leave 90% of its images within 0\.09"):
        made.needed(0.08, 0.9)


def test_more_evaluations_that_are_worse_are_counted_against_fewer():
    """An image is good at n only if it is at all above n: so misses fall with n, which the promise rests on."""
    good, bad = np.full((1, 39), 0.1), np.full((1, 39), 0.3)
    assert with_errors({4: good, 6: bad, 8: good}).needed(0.2, 0.9).tolist() == [8]


def test_the_promise_holds_on_average_over_calibrations():
    """Log-normal errors whose scale falls with the evaluations: the share within the quality, known in closed form."""
    from scipy.stats import norm

    rng, spread, scales = np.random.default_rng(0), 0.6, {3: 0.09, 4: 0.06, 5: 0.04, 6: 0.03, 8: 0.02, 12: 0.01}
    kept = []
    for _ in range(400):
        noise = np.exp(spread * rng.standard_normal((1, 40)))  # an image that is hard is hard at every number
        taken = with_errors({nfe: scale * noise for nfe, scale in scales.items()}).needed(0.07, 0.9)[0]
        kept.append(norm.cdf(np.log(0.07 / scales[taken]) / spread))
    assert 0.9 <= np.mean(kept) < 0.97


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((0.0, 0.9), "quality must be above 0"),
        ((0.1, 1.0), "coverage between 0 and 1, got 0.1 and 1.0"),
        ((0.1, 0.99), "a coverage of 0.99 takes 99 noises a class, there are 20"),
    ],
)
def test_what_cannot_be_promised_is_refused(asked, said):
    with pytest.raises(DataError, match=said):
        with_errors({4: np.full((2, 20), 0.01)}).needed(*asked)


def test_held_out_errors_are_those_of_drawing_each_class(pipe, scheduler):
    from mlx_tasks.rl.problem import endpoint_errors, noise_seed, reference_grid

    bundle, noise = pipe.bundle, bundle_noise(pipe.bundle, noise_seed(0, "calibration"), 72)
    labels = [i % 3 for i in range(72)]
    truth = sample_bundle(bundle, noise, labels, reference_grid(bundle.schedule, 16), "dpmpp_2m").images
    for nfe, sampler in scheduler.samplers.items():
        drawn = sample_bundle(replace(bundle, sampler=sampler), noise, labels).images
        errors = endpoint_errors(np.array(drawn), np.array(truth))
        assert scheduler.held_out[nfe].shape == (3, 24)
        for label in range(3):
            np.testing.assert_allclose(scheduler.held_out[nfe][label], errors[label::3], rtol=1e-3)


def test_a_quality_gives_each_image_what_its_class_needs(pipe, scheduler, tmp_path):
    errors = {2: np.array([[0.1], [0.3], [0.1]]), 3: np.array([[0.05]] * 3)}
    made = replace(scheduler, held_out={nfe: np.repeat(one, 24, axis=1) for nfe, one in errors.items()})
    made.save(tmp_path / "s.json")
    fitted, labels = DiffusionPipeline(pipe.bundle, AdaptiveScheduler.load(tmp_path / "s.json")), [1, 0, 2, 1]
    found = fitted(labels, seed=4, quality=0.2)
    assert found.nfe_each.tolist() == [3, 2, 2, 3] and found.nfe == 2.5
    noise = bundle_noise(pipe.bundle, 4, 4)
    for nfe in (2, 3):
        bundle = replace(pipe.bundle, sampler=scheduler.samplers[nfe])
        alone = to_uint8(np.array(sample_bundle(bundle, noise, labels).images))
        rows = found.nfe_each == nfe
        assert np.abs(found.images[rows].astype(int) - alone[rows]).max() <= 1
    for more, said in (
        ({"class_labels": None, "num_images": 2}, "give class_labels"),
        ({"class_labels": [3]}, "empty label 3"),
        ({"class_labels": [0], "guidance_scale": 2.0}, "leave guidance_scale"),
        ({"class_labels": [0], "nfe": 3}, "each choose the steps"),
    ):
        with pytest.raises(DataError, match=said):
            fitted(**more, quality=0.2)
    foreign = replace(made, held_out={nfe: one[:2] for nfe, one in made.held_out.items()})
    with pytest.raises(DataError, match="fitted to 2 classes"):
        DiffusionPipeline(pipe.bundle, foreign)([0], quality=0.2)
    for nothing in ({"nfe": ()}, {"calibration": 0}):
        with pytest.raises(DataError, match="at least one noise to calibrate on"):
            AdaptiveScheduler.fit(pipe, tell=quiet, **nothing)
    with pytest.raises(DataError, match="quality needs a scheduler"):
        pipe([0], quality=0.2)


def test_a_file_without_held_out_errors_still_draws_by_budget(scheduler, tmp_path):
    scheduler.save(tmp_path / "s.json")
    rows = json.loads((tmp_path / "s.json").read_text())
    for row in rows.values():
        del row["held_out"]
    (tmp_path / "old.json").write_text(json.dumps(rows))
    old = AdaptiveScheduler.load(tmp_path / "old.json")
    assert old.sampler(3) == scheduler.sampler(3)
    with pytest.raises(DataError, match="fit it again"):
        old.needed(0.1)
    rows["2"]["held_out"] = [[0.1]]
    (tmp_path / "bad.json").write_text(json.dumps(rows | {"3": {**rows["3"], "held_out": [[0.1, 0.2]]}}))
    with pytest.raises(DataError, match="no saved AdaptiveScheduler"):
        AdaptiveScheduler.load(tmp_path / "bad.json")
