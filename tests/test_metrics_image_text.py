"""The image-text model: it learns which caption goes with which image, in any script, and says how well."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.errors import DataError, DivergedError
from mlx_tasks.metrics.caption_window import WIDEST, WINDOW, count_cut, share_alike, window_for
from mlx_tasks.metrics.image_text import (
    PAD,
    ImageTextConfig,
    ImageTextModel,
    contrastive_loss,
    image_text_scores,
    load_image_text,
    save_image_text,
    similarities,
    tokenize,
)
from mlx_tasks.metrics.image_text_training import retrieval, train_image_text

CAPTIONS = ["ein heller Kreis", "яркий квадрат", "明るい帯", "شريط عمودي"]


def _shapes(count, seed):
    """Four kinds of 8-pixel pictures with noise, and their captions in four scripts."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(4, size=count)
    y, x = np.mgrid[:8, :8]
    masks = np.stack(
        [
            (y - 3.5) ** 2 + (x - 3.5) ** 2 < 8,
            (abs(y - 3.5) < 3) & (abs(x - 3.5) < 3),
            abs(y - 3.5) < 2,
            abs(x - 3.5) < 2,
        ]
    )
    images = 2.0 * masks[kinds] - 1 + 0.5 * rng.normal(size=(count, 8, 8))
    return images[..., None].astype(np.float32), kinds, [CAPTIONS[k] for k in kinds]


@pytest.fixture(scope="module")
def trained():
    images, _, captions = _shapes(300, 0)
    model = ImageTextModel(ImageTextConfig(1, width=8, dimension=16, max_bytes=32), seed=0)
    losses = [record.loss for record in train_image_text(model, images, captions, 60, 32, seed=0)]
    return model, losses


def test_any_script_becomes_its_bytes_cut_or_padded():
    tokens = tokenize(["aé", "帯" * 9, ""], 5)
    assert tokens[0].tolist() == [0x61, 0xC3, 0xA9, PAD, PAD]
    assert tokens[1].tolist() == list(("帯" * 9).encode()[:5])
    assert tokens[2].tolist() == [PAD] * 5


def test_padding_says_nothing():
    model = ImageTextModel(ImageTextConfig(1, max_bytes=24))
    short = model.encode_texts(mx.array(tokenize(["seven"], 12)))
    long = model.encode_texts(mx.array(tokenize(["seven"], 24)))
    np.testing.assert_allclose(np.array(short), np.array(long), atol=1e-6)


@pytest.mark.parametrize("side", [4, 8, 16, 20, 64])
def test_both_encoders_give_unit_vectors_at_any_side(side):
    model = ImageTextModel(ImageTextConfig(3))
    images = mx.array(np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32))
    for vectors in (model.encode_images(images), model.encode_texts(mx.array(tokenize(["a", "zwei"], 96)))):
        np.testing.assert_allclose(np.linalg.norm(np.array(vectors), axis=1), 1, atol=1e-4)


def test_the_loss_is_torchs_cross_entropy_both_ways_where_captions_differ():
    torch = pytest.importorskip("torch")
    model = ImageTextModel(ImageTextConfig(1, width=8, max_bytes=32))
    images, tokens = _shapes(4, 3)[0], tokenize(CAPTIONS, 32)
    logits = torch.tensor(np.array(model.encode_images(mx.array(images)) @ model.encode_texts(mx.array(tokens)).T))
    logits = logits * math.exp(model.log_scale.item())
    target = torch.arange(4)
    oracle = 0.5 * (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    )
    found = contrastive_loss(model, mx.array(images), mx.array(tokens), mx.eye(4))
    assert found.item() == pytest.approx(oracle.item(), rel=1e-5)


def test_a_caption_shared_by_images_asks_for_even_shares():
    """Two images with one caption, one distinct caption in the batch: image to text is certain (0), text to image at
    best a coin between the two: ln 2."""
    model = ImageTextModel(ImageTextConfig(1, width=8, max_bytes=32))
    image = _shapes(1, 4)[0]
    found = contrastive_loss(
        model, mx.array(np.concatenate([image, image])), mx.array(tokenize(CAPTIONS[:1], 32)), mx.ones((2, 1))
    )
    assert found.item() == pytest.approx(0.5 * math.log(2), rel=1e-5)


def test_it_learns_and_tells_captions_apart_on_fresh_images(trained):
    model, losses = trained
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    images, kinds, captions = _shapes(200, 1)
    found = retrieval(model, images, captions, kinds, seed=0)
    assert (found.choices, found.chance) == (4, 0.25)
    assert found.accuracy.value > 0.9 and found.accuracy.low > 0.8
    wrong = [CAPTIONS[(k + 1) % 4] for k in kinds]
    assert image_text_scores(model, images, captions).mean() > image_text_scores(model, images, wrong).mean() + 20


def test_an_untrained_model_picks_captions_by_chance():
    images, kinds, captions = _shapes(400, 2)
    shuffled = np.random.default_rng(0).permutation(400)
    model = ImageTextModel(ImageTextConfig(1, width=8, max_bytes=32), seed=5)
    found = retrieval(model, images[shuffled], captions, kinds, seed=0)
    assert 0.1 < found.accuracy.value < 0.4
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        retrieval(model, images, captions, np.zeros(400, int), seed=0)


def test_the_score_is_a_hundred_times_the_positive_cosine(trained):
    images, _, captions = _shapes(30, 5)
    cosines = similarities(trained[0], images, captions)
    assert (abs(cosines) <= 1 + 1e-6).all()
    np.testing.assert_allclose(image_text_scores(trained[0], images, captions), 100 * np.maximum(cosines, 0))


@pytest.mark.parametrize(
    ("captions", "window"),
    [
        (["a cat", "a dog!!"], 8),
        (["x" * 100 + "cat", "x" * 100 + "dog"], 104),
        (["cat" + "x" * 300, "dog" + "x" * 300], WINDOW),
        (["x" * 400 + "cat", "x" * 400 + "dog" + "y" * 400], WIDEST),
        (["x" * 600 + "cat", "x" * 600 + "dog"], WINDOW),
        (["ü" * 60 + "cat", "ü" * 60 + "dog"], 128),
        ([""], 8),
    ],
)
def test_the_window_is_as_wide_as_captions_need_to_be_told_apart(captions, window):
    assert window_for(captions) == window


def test_what_the_window_cuts_is_counted_and_captions_that_then_read_alike_are_found():
    captions = ["x" * 600 + word for word in ("cat", "dog", "cat")] + ["cup"]
    assert count_cut(captions, WINDOW) == 3
    assert share_alike(captions, np.array([0, 1, 0, 2]), WINDOW) == 0.75
    assert share_alike(captions, np.array([0, 0, 0, 2]), WINDOW) == 0


def test_captions_that_begin_alike_are_learned_to_their_end():
    prefix = "one of many pictures of this set, taken in the same light against the same wall, and showing this: a "
    images, _, _ = _shapes(300, 0)
    words = ["circle", "square", "lying band", "standing band"]
    captions = [prefix + words[kind] for kind in _shapes(300, 0)[1]]
    window = window_for(captions)
    assert WINDOW < len(prefix) < window
    model = ImageTextModel(ImageTextConfig(1, width=8, dimension=16, max_bytes=window), seed=0)
    list(train_image_text(model, images, captions, 100, 32, seed=0))
    fresh, kinds, _ = _shapes(100, 1)
    assert retrieval(model, fresh, [prefix + words[kind] for kind in kinds], kinds, seed=0).accuracy.value > 0.9


def test_training_again_gives_the_same_weights():
    images, _, captions = _shapes(64, 6)
    runs = []
    for _ in range(2):
        model = ImageTextModel(ImageTextConfig(1, width=8, max_bytes=32), seed=1)
        runs.append([record.loss for record in train_image_text(model, images, captions, 4, 16, seed=2)])
    assert runs[0] == runs[1]


def test_a_loss_that_is_not_finite_ends_training_with_the_step():
    images, _, captions = _shapes(16, 7)
    images[3] = np.nan
    model = ImageTextModel(ImageTextConfig(1, width=8, max_bytes=32))
    with pytest.raises(DivergedError) as caught:
        list(train_image_text(model, images, captions, 5, 16, seed=0))
    assert caught.value.step == 0


def test_it_comes_back_from_disk_as_it_was(trained, tmp_path):
    model, _ = trained
    save_image_text(model, tmp_path, {"trained": True})
    images, _, captions = _shapes(20, 8)
    back = load_image_text(tmp_path)
    np.testing.assert_array_equal(similarities(back, images, captions), similarities(model, images, captions))


def test_a_folder_that_does_not_fit_is_refused_by_name(trained, tmp_path):
    with pytest.raises(DataError, match="run `mlx-tasks image_text`"):
        load_image_text(tmp_path)
    save_image_text(trained[0], tmp_path, {})
    text = (tmp_path / "model.json").read_text().replace('"dimension": 16', '"dimension": 32')
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DataError, match=r"image_encoder\.out\.weight"):
        load_image_text(tmp_path)
