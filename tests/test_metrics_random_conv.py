"""The random-convolution space: fixed for ever, and able to tell good digits from bad ones in the right order."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlx_tasks.data.loader import to_float
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.normal import normal
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.metrics.references import blurred, class_gaussians, class_missing, matching_real, noise

GOLDEN_WORDS = [16278639771243212573, 6807555713146629974, 9538252321840362231, 6120440618770978132]
GOLDEN_FEATURES = [-0.06050643, -0.16999041, -0.17426419, 0.16069015]


@pytest.fixture(scope="module")
def digits():
    """(training images, their labels, test images, their labels) at 16 pixels, uint8."""
    source = load_digits()
    small = np.round(source.images / 16 * 255).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((16, 16), Image.Resampling.BICUBIC)) for x in small])
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order][..., None], source.target[order]
    return images[:1200], labels[:1200], images[1200:1600], labels[1200:1600]


def test_the_normals_are_those_of_a_written_list():
    """Golden: Philox with key (7, 1), whose words numpy pins, through Box-Muller by hand."""
    words = np.random.Philox(key=[7, 1]).random_raw(4)
    assert words.tolist() == GOLDEN_WORDS
    u = [((int(w) >> 11) + 0.5) * 2.0**-53 for w in words]
    by_hand = [np.sqrt(-2 * np.log(u[i])) * np.cos(2 * np.pi * u[i + 2]) for i in range(2)]
    np.testing.assert_allclose(normal((2,), 7, 1), by_hand, rtol=1e-15)
    sample = normal((200, 500), 3, 4)
    assert abs(sample.mean()) < 0.013 and abs(sample.std() - 1) < 0.01


def test_features_have_the_promised_shape_and_do_not_depend_on_batches(digits):
    space = RandomConvFeatures(1)
    features = space(digits[2][:50])
    assert features.shape == (50, 64) and features.dtype == np.float64
    np.testing.assert_allclose(space(digits[2][:50], batch_size=7), features, atol=1e-5)
    np.testing.assert_allclose(space(to_float(digits[2][:50])), features, atol=1e-5)
    assert not np.allclose(RandomConvFeatures(1, seed=1)(digits[2][:50]), features, atol=0.1)


def test_features_of_one_image_are_a_golden_value():
    """Kept so that a change of the space, which makes old scores incomparable, is never an accident."""
    ramp = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 16, 16, 1)
    found = RandomConvFeatures(1)(ramp)[0]
    np.testing.assert_allclose(found[:4], GOLDEN_FEATURES, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (3, 4, 6, 1), (2, 64, 48, 3), (2, 17, 17, 1)])
def test_other_sizes_and_colours_have_features_too(shape):
    images = np.random.default_rng(1).uniform(-1, 1, shape)
    features = RandomConvFeatures(shape[-1])(images)
    assert features.shape == (shape[0], 64) and np.isfinite(features).all()


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, H>=4, W>=4, 3\), got \(2, 8, 8, 1\)"):
        RandomConvFeatures(3)(np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RandomConvFeatures(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ladder_of_known_sets_stands_in_the_right_order(digits, seed):
    train, labels, test, wanted = digits
    space = RandomConvFeatures(1, seed=seed)
    held_out = space(test)

    def distance(images):
        return frechet_distance(space(images), held_out)

    real = distance(matching_real(train, labels, wanted, 0))
    missing = distance(class_missing(train, labels, wanted, 0))
    gaussian = distance(class_gaussians(train, labels, wanted, 0))
    smooth = distance(blurred(matching_real(train, labels, wanted, 0)))
    snow = distance(noise(test.shape, 0))
    assert real < 0.75 * missing
    assert missing < 0.5 * gaussian
    assert gaussian < 0.75 * smooth
    assert smooth < 0.5 * snow


def test_the_references_are_what_they_say(digits):
    train, labels, _, wanted = digits
    real = matching_real(train, labels, wanted, 0)
    rows = [np.flatnonzero((train == x).all(axis=(1, 2, 3)))[0] for x in real[:40]]
    assert (labels[rows] == wanted[:40]).all()
    assert len({x.tobytes() for x in real}) > 390  # each used once (a few digits are drawn alike)
    gone = np.bincount(wanted).argmax()
    there = {x.tobytes() for x in class_missing(train, labels, wanted, 0)}
    assert not there & {x.tobytes() for x in train[labels == gone]}
    threes = class_gaussians(train, labels, np.full(4000, 3), 0).reshape(4000, -1) / 255.0
    pixels = train[labels == 3].reshape((labels == 3).sum(), -1) / 255.0
    inner = (pixels.mean(0) > 0.3) & (pixels.mean(0) < 0.7)  # where clipping to [0, 255] does little
    np.testing.assert_allclose(threes[:, inner].mean(0), pixels[:, inner].mean(0), atol=0.05)
    with pytest.raises(ValueError, match="label 77 is wanted"):
        matching_real(train, labels, np.array([77]), 0)
