"""The built-in learned features: what they see on digits, and that they are the same wherever they are made."""

import mlx.core as mx
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.extractors.self_supervised import (
    Encoder,
    FeatureConfig,
    SelfSupervisedFeatures,
    encoder_moments,
    fit_projection,
    load_features,
    save_features,
)
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.metrics.references import class_gaussians, matching_real
from mlx_tasks.metrics.self_supervised_training import Denoiser, train_features

SOURCE = load_digits()
ORDER = np.random.default_rng(0).permutation(len(SOURCE.target))
IMAGES = np.round(SOURCE.images[ORDER] / 16 * 255).astype(np.uint8)[..., None]
LABELS = SOURCE.target[ORDER]


def make(seed=0, steps=120, images=IMAGES[:1000]):
    encoder = Encoder(FeatureConfig(1, images.shape[1], width=16), seed)
    losses = [r.loss for r in train_features(encoder, images.astype(np.float32) / 127.5 - 1, steps, 64, seed)]
    return SelfSupervisedFeatures(encoder, *fit_projection(encoder_moments(encoder, images), 32)), losses


@pytest.fixture(scope="module")
def trained():
    return make()


def test_the_denoiser_learns(trained):
    _, losses = trained
    spread = (IMAGES[:1000] / 127.5 - 1).var(axis=0).mean()  # what always answering the mean image would cost
    assert np.mean(losses[-10:]) < 0.75 * spread < losses[0]


def test_a_class_gaussian_stands_further_from_real_than_untrained_convolutions_see_it(trained):
    train, labels, held_out, wanted = IMAGES[:1000], LABELS[:1000], IMAGES[1000:1400], LABELS[1000:1400]
    real, gaussian = (make(train, labels, wanted, 0) for make in (matching_real, class_gaussians))

    def times_real(space):
        base = space(held_out)
        return frechet_distance(space(gaussian), base) / frechet_distance(space(real), base)

    assert times_real(trained[0]) > 1.5 * times_real(RandomConvFeatures(1)) > 1.5


def test_the_same_seed_gives_the_same_features_and_another_other_ones():
    one, again, other = (make(seed, steps=5)[0] for seed in (0, 0, 1))
    assert np.array_equal(one(IMAGES[:20]), again(IMAGES[:20]))
    assert not np.allclose(one(IMAGES[:20]), other(IMAGES[:20]))


def test_features_are_centred_on_the_training_images_with_total_variance_near_one(trained):
    features = trained[0](IMAGES[:1000])
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
    assert 0.9 < features.var(axis=0).sum() <= 1.001
    covariance = np.cov(features.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-6
    assert (np.diff(np.diag(covariance)) < 0).all()


def test_saved_and_loaded_they_are_the_same(trained, tmp_path):
    save_features(trained[0], tmp_path, {"steps": 120})
    again = load_features(tmp_path)
    assert np.array_equal(again(IMAGES[:30], batch_size=7), trained[0](IMAGES[:30], batch_size=7))
    assert again.identity["name"] == "self_supervised" and len(again.identity["weights"]) == 64
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="run `mlx-tasks features`"):
        load_features(tmp_path)


@pytest.mark.parametrize("side", [9, 21])
def test_odd_sides_are_encoded_and_decoded(side):
    model = Denoiser(Encoder(FeatureConfig(3, side, width=4)), 0)
    assert model(mx.zeros((2, side, side, 3))).shape == (2, side, side, 3)


def test_other_images_are_refused(trained):
    with pytest.raises(DataError, match=r"of images 8 x 8 x 1, got \(16, 16, 1\)"):
        trained[0](np.zeros((2, 16, 16, 1), np.uint8))
    with pytest.raises(DataError, match="float32"):
        trained[0](np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(DataError, match="at least 8 pixels"):
        Encoder(FeatureConfig(1, 4))
