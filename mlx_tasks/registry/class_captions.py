"""Does a drawn image show the class it was asked for? The run's image-text model with one caption a class.

FOLDER/model.safetensors, model.json    as `metrics.image_text` writes them; model.json holds the captions too
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json
from mlx_tasks.models.json_file import read_mapping
from mlx_tasks.models.limits import check_memory, weights_bytes, whole
from mlx_tasks.models.safetensors_header import read_header

if TYPE_CHECKING:
    from mlx_tasks.data.loader import ImageSet
    from mlx_tasks.metrics.image_text import ImageTextModel

MOST_SIZE = 8192
"""Of each of an image-text model's sizes."""


@dataclass(frozen=True)
class ClassCaptions:
    """An image-text model that knows what a bundle's classes are called.

    Attributes:
        model: tells images and captions apart.
        captions: caption of each label.
    """

    model: ImageTextModel
    captions: tuple[str, ...]

    def scores(self, images: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """(N,) image-text score of each image and its label's caption.

        images: (N, H, W, C) uint8; labels: (N,) positions in `captions`.
        """
        from mlx_tasks.metrics.image_text import image_text_scores

        pixels = images.astype(np.float32) / 127.5 - 1
        return image_text_scores(self.model, pixels, [self.captions[label] for label in labels])


def of_run(folder: Path, train: ImageSet) -> ClassCaptions | None:
    """What a run's stage `image_text` trained, with each class' commonest caption of the training split.

    None where the stage had no captions to learn, or cannot tell them apart, or a class has none.
    """
    from mlx_tasks.metrics.image_text import load_image_text

    facts = read_json(folder / "model.json")
    if not train.class_names or not facts["trained"] or facts.get("untrusted_because"):
        return None
    told: list[Counter[str]] = [Counter() for _ in train.class_names]
    for label, caption in zip(train.labels, train.captions, strict=True):
        told[label][caption] += 1
    if not all(told):
        return None
    return ClassCaptions(load_image_text(folder), tuple(counts.most_common(1)[0][0] for counts in told))


def write_class_captions(folder: Path, captions: ClassCaptions) -> None:
    """Write model and captions."""
    from mlx_tasks.metrics.image_text import save_image_text

    save_image_text(captions.model, folder, {"captions": list(captions.captions)})


def read_class_captions(folder: Path) -> ClassCaptions | None:
    """What `write_class_captions` wrote; None where there is no such folder.  Raises: DataError for a broken one."""
    from mlx_tasks.metrics.image_text import load_image_text

    if not folder.is_dir():
        return None
    captions, sizes = read_captions(folder), read_mapping(folder / "model.json").get("config")
    if not isinstance(sizes, dict) or not all(whole(size) and size <= MOST_SIZE for size in sizes.values()):
        raise DataError(f"{folder}/model.json must hold sizes from 1 to {MOST_SIZE} as config, got {sizes!r:.120}")
    count = sum(one.size for one in read_header(folder / "model.safetensors").values())
    check_memory(weights_bytes(count), f"the image-text model of {folder}")
    return ClassCaptions(load_image_text(folder), captions)


def read_captions(folder: Path) -> tuple[str, ...]:
    """The caption of each class, without the model.  Raises: DataError where there are none."""
    captions = read_mapping(folder / "model.json").get("captions")
    if not isinstance(captions, list) or not all(isinstance(one, str) for one in captions):
        raise DataError(f"{folder}/model.json names no captions: register the bundle again")
    return tuple(captions)
