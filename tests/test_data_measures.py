"""Brightness, sharpness, look and square cuts against scipy and by hand."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage
from scipy.fft import dctn
from sklearn.datasets import load_digits, load_sample_image

from mlx_tasks.data.duplicates import duplicate_groups
from mlx_tasks.data.measures import Looks, brightness, look, sharpness, square
from mlx_tasks.data.sources import digits_to_uint8

RNG = np.random.default_rng(0)


def groups_of(images: list[Image.Image], distance: int) -> list[int]:
    """The groups of images by their looks alone."""
    looks = Looks.empty(len(images))
    for row, image in enumerate(images):
        looks.put(row, look(image))
    return duplicate_groups(np.arange(len(images)), looks, distance).tolist()


def near(one: Image.Image, other: Image.Image, distance: int = 12) -> bool:
    """Whether the two are grouped at this distance."""
    return len(set(groups_of([one, other], distance))) == 1


def smooth(count: int, cells: int) -> list[Image.Image]:
    """Coloured clouds of cells x cells, 48 pixels square: no detail, no relation."""
    noise = RNG.integers(0, 256, (count, cells, cells, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((48, 48), Image.Resampling.BICUBIC) for one in noise]


def photographs() -> list[Image.Image]:
    """90 tiles of two photographs, 96 pixels square, that share no pixel."""
    tiles = []
    for name in ("china.jpg", "flower.jpg"):
        picture = load_sample_image(name)
        for y in range(0, picture.shape[0] - 95, 96):
            tiles += [Image.fromarray(picture[y : y + 96, x : x + 96]) for x in range(0, picture.shape[1] - 95, 96)]
    return [tile for tile in tiles if np.asarray(tile.convert("L"), float).std() > 15]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_brightness_is_the_mean_luma_over_white():
    pixels = RNG.integers(0, 256, (13, 9), dtype=np.uint8)
    assert brightness(Image.fromarray(pixels)) == pytest.approx(pixels.mean() / 255, abs=1e-12)
    assert brightness(Image.new("RGB", (8, 8), (255, 0, 0))) == pytest.approx(76 / 255)  # 0.299 * 255


@pytest.mark.parametrize("shape", [(3, 3), (40, 17), (1300, 9)])
def test_sharpness_is_the_variance_of_scipys_laplacian(shape):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    laplacian = ndimage.laplace(pixels.astype(np.float64))[1:-1, 1:-1]
    assert sharpness(Image.fromarray(pixels)) == pytest.approx(laplacian.var(), rel=1e-12)


def test_blur_lowers_sharpness_and_a_ramp_has_none():
    tile = photographs()[0]
    blurred = [sharpness(tile.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert blurred == sorted(blurred, reverse=True)
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8), (32, 32))
    assert sharpness(Image.fromarray(np.ascontiguousarray(ramp))) == 0


def test_bits_and_shape_are_scipys_dct():
    tile = photographs()[3]
    small = np.asarray(tile.convert("L").resize((32, 32), Image.Resampling.BICUBIC), float)
    low = dctn(small, norm="ortho")[:16, :16]
    strong = low.ravel() > max(4, np.median(low.ravel()[1:]))
    strong[0] = False
    seen = look(tile)
    np.testing.assert_array_equal(np.unpackbits(np.frombuffer(seen.bits, np.uint8)).astype(bool), strong)
    shape = low[:8, :8].ravel()[1:]
    np.testing.assert_allclose(seen.shape.astype(float), shape / np.linalg.norm(shape), atol=1e-3)


def test_a_flat_image_looks_like_nothing():
    assert look(Image.new("L", (40, 40), 200)) is None


def test_no_digit_is_taken_for_another():
    digits = [Image.fromarray(pixels) for pixels in digits_to_uint8(load_digits().images)]
    assert len(set(groups_of(digits, 12))) == len(digits)


COPIES = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "twice": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "jpeg 95": lambda image: jpeg(image, 95),
    "jpeg 80": lambda image: jpeg(image, 80),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(name):
    images = photographs()[:40] + smooth(20, 3) + smooth(20, 6)
    assert np.mean([near(COPIES[name](image), image) for image in images]) >= 0.97


@pytest.mark.parametrize(("images", "most"), [(photographs(), 0), (smooth(300, 3), 2), (smooth(300, 6), 0)])
def test_strangers_are_kept_apart(images, most):
    assert len(images) - len(set(groups_of(images, 12))) <= most


def test_square_of_the_right_side_is_untouched():
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(square(Image.fromarray(pixels), 16, 3), pixels)


def test_square_cuts_the_centre():
    pixels = np.zeros((8, 20), np.uint8)
    pixels[:, 6:14] = 255
    np.testing.assert_array_equal(square(Image.fromarray(pixels), 8, 1), np.full((8, 8, 1), 255))


def test_shrinking_is_antialiased():
    """A one-pixel checkerboard is mid-grey at a quarter; picking pixels would give black or white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = square(Image.fromarray(board.astype(np.uint8)), 16, 1)[2:-2, 2:-2]
    assert np.abs(small.astype(int) - 128).max() <= 8


def test_digits_keep_their_sixteen_levels_through_uint8():
    values = load_digits().images
    np.testing.assert_array_equal(np.rint(digits_to_uint8(values).astype(float) * 16 / 255), values)
    assert digits_to_uint8(np.array([0, 16])).tolist() == [0, 255]
