"""Stage `features`: the built-in learned feature space, from the training images alone."""

from __future__ import annotations

from mlx_tasks.data.loader import load_split, to_float
from mlx_tasks.files import atomic_folder
from mlx_tasks.stages.context import StageContext

BATCH_SIZE = 64


def run(context: StageContext) -> None:
    """Train on the training split, without labels; write work/features/ (model.safetensors, model.json)."""
    from mlx_tasks.metrics.extractors.self_supervised import (
        Encoder,
        FeatureConfig,
        SelfSupervisedFeatures,
        encoder_moments,
        fit_projection,
        save_features,
    )
    from mlx_tasks.metrics.self_supervised_training import train_features

    config = context.config
    train = load_split(context.work / "dataset", config.resolution, "train")
    encoder = Encoder(FeatureConfig(train.images.shape[-1], config.resolution), config.seed)
    steps, loss = config.evaluate.feature_steps, 0.0
    for record in train_features(encoder, to_float(train.images), steps, BATCH_SIZE, config.seed):
        loss = record.loss
        context.progress.update(record.step, steps, loss=loss)
        context.tracker.metrics({"features/loss": loss}, record.step)
    centre, projection = fit_projection(encoder_moments(encoder, train.images), encoder.config.dimension)
    facts = {"steps": steps, "training_images": len(train), "loss": loss, "dimension": projection.shape[1]}
    with atomic_folder(context.work / "features") as fresh:
        save_features(SelfSupervisedFeatures(encoder, centre, projection), fresh, facts)
    context.progress.say(f"{projection.shape[1]} features from {len(train)} images, denoising error {loss:.4f}")
