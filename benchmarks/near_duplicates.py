"""How many copies are found, and how many different images are taken for copies?

    python benchmarks/near_duplicates.py

Copies are the image saved as a JPEG of quality 80, at half its size, blurred, and brighter; each set of images is
grouped with its copies of one kind. Digits and the two photographs, cut into tiles, are those that scikit-learn
ships; smooth images are clouds of colour drawn here.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from record import save
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits, load_sample_image

from mlx_tasks.config import Data
from mlx_tasks.data.duplicates import duplicate_groups
from mlx_tasks.data.measures import Looks, look

DISTANCE = Data().duplicate_distance
TILE = 64


def digits() -> list[Image.Image]:
    """All 1797, 8 x 8 pixels."""
    return [Image.fromarray(np.rint(one * 255 / 16).astype(np.uint8)) for one in load_digits().images]


def photographs() -> list[Image.Image]:
    """Tiles of two photographs."""
    tiles = []
    for name in ("china.jpg", "flower.jpg"):
        pixels = load_sample_image(name)
        for top in range(0, pixels.shape[0] - TILE + 1, TILE):
            for left in range(0, pixels.shape[1] - TILE + 1, TILE):
                tiles.append(Image.fromarray(pixels[top : top + TILE, left : left + TILE]))
    return tiles


def smooth() -> list[Image.Image]:
    """Clouds of colour without detail."""
    random = np.random.default_rng(0)
    clouds = gaussian_filter(random.standard_normal((200, TILE, TILE, 3)), sigma=(0, 12, 12, 0))
    spread = np.abs(clouds).max(axis=(1, 2, 3), keepdims=True)
    return [Image.fromarray(one) for one in np.rint(127.5 * (clouds / spread + 1)).astype(np.uint8)]


def as_jpeg(image: Image.Image) -> Image.Image:
    """Saved at quality 80 and read again."""
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=80)
    return Image.open(kept).copy()


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 80": as_jpeg,
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 64)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
}


def groups(images: list[Image.Image]) -> np.ndarray:
    """The near-duplicate group of each image."""
    looks = Looks.empty(len(images))
    for row, image in enumerate(images):
        looks.put(row, look(image))
    pixels = np.array([f"{image.mode}{image.size}{hash(image.tobytes())}" for image in images])
    return duplicate_groups(pixels, looks, DISTANCE)


def main() -> None:
    """Each kind of image by itself, then with its copies; tell, save."""
    rows = []
    for name, images in (("digits", digits()), ("photographs", photographs()), ("smooth", smooth())):
        alone = groups(images)
        pairs = sum(n * (n - 1) // 2 for n in np.bincount(np.unique(alone, return_inverse=True)[1]).tolist())
        row: dict[str, object] = {"images": name, "count": len(images), "taken_for_copies": int(pairs)}
        for kind, change in COPIES.items():
            both = groups([*images, *map(change, images)])
            row[kind] = float(np.mean(both[: len(images)] == both[len(images) :]))
        rows.append(row)
        print(row)
    save("near_duplicates", question="How many copies are found?", config={"distance": DISTANCE}, rows=rows)


if __name__ == "__main__":
    main()
