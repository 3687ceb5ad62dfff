"""What a bundle's images looked like when it was registered: features that a monitor compares later images with.

    BUNDLE/reference/features.safetensors   generated (N, D), held_out (M, D) and each of `scalars` (N,) float32,
                                            generated_labels (N,) int32
    BUNDLE/reference/reference.json         the feature space, counts, seed, and the Frechet distance between the two
    BUNDLE/reference/image_text/            the run's image-text model and the classes' captions, where there are any

Features of an untrained space hold no picture: nobody gets the training data with the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_bytes, write_json
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.scalars import IMAGE_TEXT, picture_numbers
from mlx_tasks.models.digests import write_digests_beside
from mlx_tasks.models.json_file import read_mapping
from mlx_tasks.models.limits import check_memory, whole
from mlx_tasks.models.safetensors_header import Entry, read_header
from mlx_tasks.registry.class_captions import ClassCaptions, read_class_captions, write_class_captions

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

FOLDER = "reference"
CAPTIONS = "image_text"
SCALAR = "scalar."
MOST_DIMENSION = 65_536
REFERENCE_SEED = 1_000_003
"""Of the reference images' noise; served and scored images come from other seeds."""


@dataclass(frozen=True)
class Reference:
    """The registered reference of one bundle.

    Attributes:
        generated: (N, D) float64 features of images that the bundle drew.
        held_out: (M, D) float64 features of held-out real images.
        labels: (N,) int32 class of each drawn image; -1 for a bundle without classes.
        channels: colour channels of the feature space.
        feature_seed: seed of the feature space.
        dimension: width of the feature space.
        frechet_distance: between the two at equal counts.
        scalars: {name: (N,)} numbers of the drawn images (`metrics.scalars`); empty in older bundles.
        captions: tells whether an image shows its class; None where nothing was learned of it.
    """

    generated: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray
    channels: int
    feature_seed: int
    dimension: int
    frechet_distance: float
    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    captions: ClassCaptions | None = None

    def features(self, images: np.ndarray) -> np.ndarray:
        """(N, D) features of images (N, H, W, C) uint8 in this reference's space."""
        from mlx_tasks.metrics.random_conv import RandomConvFeatures

        return RandomConvFeatures(self.channels, self.feature_seed, self.dimension)(images)


def make_reference(
    bundle: Bundle, held_out: np.ndarray, count: int, captions: ClassCaptions | None = None
) -> Reference:
    """Draw `count` images, classes in turn, and keep their features beside those of held-out images.

    held_out: (M, H, W, C) uint8 at the bundle's resolution. captions: of the bundle's classes.
    """
    from mlx_tasks.metrics.random_conv import RandomConvFeatures
    from mlx_tasks.registry.draw import draw

    classes = len(bundle.sampler.class_names)
    labels = np.arange(count, dtype=np.int32) % classes if classes else np.full(count, -1, np.int32)
    seeds = range(REFERENCE_SEED, REFERENCE_SEED + count)
    space = RandomConvFeatures(bundle.sampler.channels)
    images = draw(bundle, labels.tolist(), list(seeds))
    generated = space(images)
    real = space(np.asarray(held_out))
    equal = min(len(generated), len(real))
    return Reference(
        generated,
        real,
        labels,
        space.channels,
        space.seed,
        space.dimension,
        frechet_distance(generated[:equal], _spread(real, equal)),
        numbers_of(images, labels, captions),
        captions,
    )


def redraw(reference: Reference, bundle: Bundle) -> Reference:
    """The same reference with the images that the bundle draws now, for a bundle whose steps were changed."""
    from mlx_tasks.registry.draw import draw

    seeds = range(REFERENCE_SEED, REFERENCE_SEED + len(reference.labels))
    images = draw(bundle, reference.labels.tolist(), list(seeds))
    generated = reference.features(images)
    equal = min(len(generated), len(reference.held_out))
    distance = frechet_distance(generated[:equal], _spread(reference.held_out, equal))
    numbers = numbers_of(images, reference.labels, reference.captions)
    return replace(reference, generated=generated, frechet_distance=distance, scalars=numbers)


def write_reference(folder: Path, reference: Reference) -> None:
    """Add the reference to a bundle's folder."""
    from safetensors.numpy import save

    arrays = {
        "generated": reference.generated.astype(np.float32),
        "held_out": reference.held_out.astype(np.float32),
        "generated_labels": reference.labels.astype(np.int32),
        **{f"{SCALAR}{name}": values.astype(np.float32) for name, values in reference.scalars.items()},
    }
    atomic_write_bytes(folder / FOLDER / "features.safetensors", save(arrays))
    if reference.captions is not None:
        write_class_captions(folder / FOLDER / CAPTIONS, reference.captions)
    description = {
        "feature_space": "random_conv",
        "channels": reference.channels,
        "feature_seed": reference.feature_seed,
        "dimension": reference.dimension,
        "generated": len(reference.generated),
        "held_out": len(reference.held_out),
        "seed": REFERENCE_SEED,
        "frechet_distance": reference.frechet_distance,
    }
    write_json(folder / FOLDER / "reference.json", description)
    write_digests_beside(folder)


def read_reference(folder: Path) -> Reference:
    """The reference of a bundle's folder.

    Raises: DataError where it has none, one that cannot be read, or one whose parts do not fit each other.
    """
    from safetensors.numpy import load_file

    place = folder / FOLDER
    try:
        described = read_mapping(place / "reference.json")
        header = read_header(place / "features.safetensors")
        _check(described, header)
        check_memory(3 * 8 * sum(one.size for one in header.values()), f"{place / 'features.safetensors'}")
        arrays = load_file(place / "features.safetensors")
        broken = [name for name, values in arrays.items() if not np.isfinite(values).all()]
        if broken:
            raise DataError(f"it has values that are not finite in {', '.join(broken):.200}")
        return Reference(
            arrays["generated"].astype(np.float64),
            arrays["held_out"].astype(np.float64),
            arrays["generated_labels"],
            described["channels"],
            described["feature_seed"],
            described["dimension"],
            described["frechet_distance"],
            {
                name.removeprefix(SCALAR): values.astype(np.float64)
                for name, values in arrays.items()
                if name.startswith(SCALAR)
            },
            read_class_captions(place / CAPTIONS),
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} has no readable reference ({error}): use a bundle that `register` wrote") from None


def _check(described: dict[str, Any], header: dict[str, Entry]) -> None:
    """Raises: DataError where description and arrays are not those of one reference."""
    for name, least in (("channels", 1), ("dimension", 1), ("feature_seed", 0)):
        if not whole(described.get(name), least):
            raise DataError(f"{name} must be a whole number of at least {least}, got {described.get(name)!r:.80}")
    rows = {name: one.shape for name, one in header.items()}
    generated, held_out = rows.pop("generated", ()), rows.pop("held_out", ())
    counts = {"generated": generated[:1], "held_out": held_out[:1]}
    expected = {name: count[0] if count else 0 for name, count in counts.items()}
    for name, value in {**expected, "feature_space": "random_conv", "seed": REFERENCE_SEED}.items():
        if described.get(name) != value:
            raise DataError(f"{name} must be {value!r}, got {described.get(name)!r:.80}")
    distance = described.get("frechet_distance")
    if isinstance(distance, bool) or not isinstance(distance, int | float):
        raise DataError(f"frechet_distance must be a number, got {distance!r:.80}")
    width = generated[1] if len(generated) == 2 else 0
    if not (width and held_out[1:] == (width,) and width <= described["dimension"] <= MOST_DIMENSION):
        raise DataError(
            f"features must be (N, D) and (M, D) with D up to {MOST_DIMENSION}, got {generated}, {held_out}"
        )
    if header.get("generated_labels", Entry("", ())).dtype != "I32":
        raise DataError("generated_labels must be I32")
    other = [f"{n} {shape}" for n, shape in rows.items() if shape != generated[:1] or not _known(n)]
    if other:
        raise DataError(f"labels and scalars must be one a drawn image ({generated[0]}), got {', '.join(other):.200}")


def _known(name: str) -> bool:
    return name == "generated_labels" or name.startswith(SCALAR)


def numbers_of(images: np.ndarray, labels: np.ndarray, captions: ClassCaptions | None) -> dict[str, np.ndarray]:
    """{name: (N,)} of uint8 images (N, H, W, C): `metrics.scalars`, and the image-text score where it can be."""
    agreement = {} if captions is None else {IMAGE_TEXT: captions.scores(images, labels.tolist())}
    return picture_numbers(images) | agreement


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows spread evenly over all of them."""
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
