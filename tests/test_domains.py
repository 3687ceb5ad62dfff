"""Domain detection and settings: the stored table against held-out images, and the arithmetic against other means."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.diffusion import NoiseSchedule
from mlx_tasks.domains.detector import TABLE, UNKNOWN, Detector, detect_domain, fit_detector, load_detector
from mlx_tasks.domains.examples import DOMAINS, draw, outsiders, typeset_digits
from mlx_tasks.domains.features import NAMES, features
from mlx_tasks.domains.settings import SamplerSettings, settings_for
from mlx_tasks.errors import DataError
from mlx_tasks.samplers import sample

RNG_SEED = 100  # the table's own benchmark uses 0


@pytest.mark.parametrize("domain", ["digits", "letters", "textures", "abstracts"])
def test_a_set_from_sources_never_seen_is_named(domain):
    guess = detect_domain(draw(domain, "unseen", 64, 16, np.random.default_rng(RNG_SEED)))
    assert guess.name == domain and guess.probability > 0.5
    assert sum(guess.chances.values()) == pytest.approx(1.0)


def test_most_images_of_held_out_sources_are_named():
    detector, rng = load_detector(TABLE), np.random.default_rng(RNG_SEED)
    right = [
        detector.posteriors(features(draw(name, part, 40, size, rng))).argmax(axis=1) == detector.names.index(name)
        for name in DOMAINS
        for part in ("test", "unseen")
        for size in (8, 16, 32)
    ]
    assert np.mean(right) > 0.85  # the benchmark's result says 0.91


@pytest.mark.parametrize("size", [8, 16])
def test_the_demos_digits_are_digits(size):
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pixels])
    guess = detect_domain(images[..., None])
    assert guess.name == "digits" and guess.probability > 0.9 and guess.strange < 0.1
    assert detect_domain(255 - images[:200, ..., None]).name == "digits"


def test_a_photograph_never_seen_is_at_least_no_pattern():
    guess = detect_domain(draw("photographs", "unseen", 64, 32, np.random.default_rng(RNG_SEED)))
    assert guess.name == "photographs"


@pytest.mark.parametrize("kind", list(outsiders(1, 16, np.random.default_rng(0))))
def test_what_is_of_no_domain_is_unknown(kind):
    guess = detect_domain(outsiders(32, 16, np.random.default_rng(RNG_SEED))[kind])
    assert guess.name == UNKNOWN and guess.strange > 0.9


def test_a_mixture_of_two_domains_is_no_certain_answer():
    rng = np.random.default_rng(RNG_SEED)
    both = np.concatenate([draw("textures", "test", 32, 16, rng), draw("abstracts", "test", 32, 16, rng)])
    assert detect_domain(both).probability < 0.99


def test_typeset_digits_look_like_letters():
    """A known limit: the digits domain is handwriting."""
    assert detect_domain(typeset_digits(32, 16, np.random.default_rng(RNG_SEED))).name == "letters"


def test_statistics_do_not_mind_grey_channels_or_negatives():
    grey = draw("letters", "fit", 8, 16, np.random.default_rng(0))[..., :1]
    assert features(grey).shape == (8, len(NAMES))
    np.testing.assert_allclose(features(grey), features(np.repeat(grey, 3, axis=-1)), atol=1e-12)
    soft = draw("textures", "fit", 8, 16, np.random.default_rng(0))
    bins = [NAMES.index(name) for name in ("entropy", "middle_tones", "extremes", "colour_count", "palette_share")]
    difference = np.delete(features(soft) - features(255 - soft), bins, axis=1)
    np.testing.assert_allclose(difference, 0, atol=1e-6)


def test_statistics_of_known_images():
    flat = np.full((1, 16, 16, 3), 128, np.uint8)
    stripes = np.tile(np.array([0, 255], np.uint8).repeat(4), 2)[None, None, :, None].repeat(16, axis=1)
    by_name = dict(zip(NAMES, features(stripes)[0], strict=True))
    assert by_name["orientation"] == pytest.approx(1.0, abs=0.01)  # every gradient points one way
    assert by_name["extremes"] == 1.0 and by_name["colour_count"] == pytest.approx(np.log(2))
    assert by_name["mirror_horizontal"] == pytest.approx(-1.0, abs=0.01)  # black meets white
    assert np.all(np.isfinite(features(flat)))
    red = flat * np.array([1, 0, 0], np.uint8)
    assert dict(zip(NAMES, features(red)[0], strict=True))["saturation"] > by_name["saturation"] + 5


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"\(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\(2, 8, 8, 4\)"),
        (np.zeros((2, 8, 8, 1), np.float32), "float32"),
        (np.zeros((0, 8, 8, 1), np.uint8), "none"),
    ],
)
def test_other_arrays_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        detect_domain(images)


def _blobs(rng, count=40000):
    size = len(NAMES)
    return {
        "near": rng.normal(0, 1, (count, size)),
        "far": rng.normal(0, 1, (count, size)) + np.eye(size)[0] * 2.0,
    }


def test_chances_are_those_of_the_true_gaussians():
    """Two unit Gaussians 2 apart: the log odds are 2 x - 2 exactly, and the fit calibrates to a temperature near 1."""
    rng = np.random.default_rng(0)
    detector = fit_detector(_blobs(rng), _blobs(rng), ridge=0.0)
    assert detector.temperature == pytest.approx(1.0, abs=0.05)
    points = rng.normal(0, 1, (200, len(NAMES)))
    truth = 1 / (1 + np.exp(-(2 * points[:, 0] - 2)))
    assert np.abs(detector.posteriors(points)[:, 1] - truth).mean() < 0.02
    assert detector.strange(rng.normal(0, 1, (5000, len(NAMES)))).mean() == pytest.approx(0.01, abs=0.006)
    assert detector.strange(points + 20).all()


def test_posteriors_are_bayes_rule_with_scipys_densities():
    from dataclasses import replace

    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(1)
    fit = _blobs(rng, 500)
    ours = replace(fit_detector(fit, fit, ridge=0.0), temperature=1.0)
    points = rng.normal(0.5, 1, (50, len(NAMES)))
    densities = [multivariate_normal(v.mean(axis=0), np.cov(v.T)).pdf(points) for v in fit.values()]
    np.testing.assert_allclose(ours.posteriors(points), (densities / np.sum(densities, axis=0)).T, atol=1e-9)


def test_a_detector_survives_json_and_a_foreign_table_is_refused(tmp_path):
    detector = load_detector(TABLE)
    again = Detector.from_dict(json.loads(json.dumps(detector.to_dict())))
    points = features(draw("abstracts", "test", 10, 16, np.random.default_rng(0)))
    np.testing.assert_allclose(again.posteriors(points), detector.posteriors(points), atol=1e-9)
    with pytest.raises(DataError, match=r"benchmarks/domain_detector\.py"):
        Detector.from_dict(detector.to_dict() | {"statistics": ["other"]})
    broken = tmp_path / "domains.json"
    broken.write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        detect_domain(np.zeros((1, 8, 8, 1), np.uint8), broken)


@pytest.mark.parametrize("domain", [*DOMAINS, UNKNOWN])
def test_settings_make_a_grid_within_the_budget(domain):
    settings = settings_for(domain)
    schedule = NoiseSchedule.cosine()
    denoise = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731  the exact denoiser of unit normal data
    for calls in (4, 8):
        drawn = sample(denoise, mx.ones((1, 2, 2, 1)), settings.make_grid(schedule, calls), settings.solver)
        assert calls - 1 <= drawn.nfe <= calls


def test_settings_name_noise_levels_and_not_timesteps():
    settings = SamplerSettings("heun", "karras", 20.0, 0.08)
    for schedule in (NoiseSchedule.cosine(), NoiseSchedule.cosine(400)):
        grid = settings.make_grid(schedule, 8)
        assert grid.num_steps == 4  # seven calls; five steps would take nine
        assert grid.sigmas[0] == pytest.approx(20.0, rel=0.1) and grid.sigmas[-2] == pytest.approx(0.08, rel=0.1)


def test_an_unknown_domains_settings_are_refused_with_the_names():
    with pytest.raises(DataError, match="digits, letters"):
        settings_for("cats")
    with pytest.raises(ValueError, match="photographs"):
        draw("cats", "fit", 1, 8, np.random.default_rng(0))
