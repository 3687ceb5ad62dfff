"""Stage `image_text`: the small image-text model behind the image-text score, and what that score is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.data.loader import ImageSet, load_split, to_float
from mlx_tasks.files import atomic_folder, write_json
from mlx_tasks.metrics.caption_window import MOST_ALIKE, count_cut, share_alike, window_for
from mlx_tasks.stages.context import StageContext

if TYPE_CHECKING:
    from mlx_tasks.metrics.image_text_training import Retrieval

BATCH_SIZE = 64


def run(context: StageContext) -> None:
    """Train on the training split's captions, judge on the test split's, write work/image_text/.

    model.json holds the model's config, `trained`, and how well it tells captions apart: `retrieval` (share of test
    images whose own caption beats those of other classes, with interval and chance), the image-text score of true
    captions and of the same captions shuffled. `untrusted_because` says why the score cannot tell captions apart, where
    it cannot: it then chooses nothing (metrics/ladder.py). Where captions say nothing (fewer than two different ones),
    `trained` is false with a `reason`, and no image-text score is given anywhere.
    """
    from mlx_tasks.metrics.image_text import ImageTextConfig, ImageTextModel, image_text_scores, save_image_text
    from mlx_tasks.metrics.image_text_training import retrieval, train_image_text

    config, folder = context.config, context.work / "image_text"
    train = load_split(context.work / "dataset", config.resolution, "train")
    test = load_split(context.work / "dataset", config.resolution, "test")
    reason = _why_not(train, test)
    if reason:
        with atomic_folder(folder) as fresh:
            write_json(fresh / "model.json", {"trained": False, "reason": reason})
        context.progress.say(f"no image-text model: {reason}")
        return

    window = window_for([*train.captions, *test.captions])
    cut = count_cut([*train.captions, *test.captions], window)
    if cut:
        context.progress.say(f"{cut} captions are longer than the {window} bytes that this model reads of each")
    sizes = ImageTextConfig(train.images.shape[-1], max_bytes=window)
    model = ImageTextModel(sizes, config.seed)
    steps = config.evaluate.image_text_steps
    for record in train_image_text(model, to_float(train.images), train.captions, steps, BATCH_SIZE, config.seed):
        context.progress.update(record.step, steps, loss=record.loss)
        context.tracker.metrics({"image_text/loss": record.loss}, record.step)

    images, groups = to_float(test.images), _groups(test)
    found = retrieval(model, images, test.captions, groups, config.seed, config.evaluate.confidence)
    order = np.random.Generator(np.random.PCG64([config.seed, 1])).permutation(len(images))
    shuffled = [test.captions[i] for i in order]
    untrusted = _why_untrusted(found, share_alike(test.captions, groups, window), window)
    facts = {
        "trained": True,
        "untrusted_because": untrusted,
        "window_bytes": window,
        "captions_cut": cut,
        "steps": steps,
        "training_pairs": len(train),
        "test_pairs": len(test),
        "retrieval": {**found.accuracy.as_dict(), "choices": found.choices, "chance": found.chance},
        "true_captions": float(image_text_scores(model, images, test.captions).mean()),
        "shuffled_captions": float(image_text_scores(model, images, shuffled).mean()),
    }
    with atomic_folder(folder) as fresh:
        save_image_text(model, fresh, facts)
    context.tracker.metrics(
        {
            "image_text/retrieval": found.accuracy.value,
            "image_text/true_captions": facts["true_captions"],
            "image_text/shuffled_captions": facts["shuffled_captions"],
        },
        0,
    )
    if untrusted:
        context.progress.say(f"the image-text score chooses nothing here: {untrusted}")
    context.progress.say(
        f"retrieval {found.accuracy.value:.3f} of {found.choices} (chance {found.chance:.2f}); image-text score of "
        f"true captions {facts['true_captions']:.1f}, of shuffled ones {facts['shuffled_captions']:.1f}"
    )


def _why_not(train: ImageSet, test: ImageSet) -> str:
    if len(set(train.captions)) < 2:
        return "the training images have no captions, or all the same one"
    if len(np.unique(_groups(test))) < 2:
        return "the test split's captions all mean the same"
    return ""


def _why_untrusted(found: Retrieval, alike: float, window: int) -> str:
    """Why the score cannot tell captions apart, or nothing."""
    if alike > MOST_ALIKE:
        return f"of {alike:.0%} of the test images the caption's first {window} bytes are those of another kind's"
    if found.accuracy.low is not None and found.accuracy.low <= found.chance:
        return (
            f"its model picks the right one of {found.choices} captions {found.accuracy.value:.2f} of the time, not "
            f"above chance ({found.chance:.2f}) beyond the noise"
        )
    return ""


def _groups(images: ImageSet) -> np.ndarray:
    """(N,) what makes captions interchangeable: the class, or without classes the caption itself."""
    if images.class_names:
        return images.labels
    return np.unique(images.captions, return_inverse=True)[1]
