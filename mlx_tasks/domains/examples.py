"""Images whose domain is known, made from what the installed packages ship: nothing is downloaded.

A detector is fitted and calibrated on disjoint shares of a domain's sources, and tested twice: on a third share
(`test`), and on sources it never saw (`unseen`: other typefaces, another photograph, other pattern families), which is
what a user's dataset is. Two domains are short of sources: digits have one, so both tests are of other hands than the
fit's; there are three photographs, so fit and calibration draw crops of the same two, and both tests of the third.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Part = Literal["fit", "calibrate", "test", "unseen"]
"""Which share of a domain's sources: the first three are disjoint shares of the same sources."""

_SPANS = {"fit": (0.0, 0.5), "calibrate": (0.5, 0.7), "test": (0.7, 1.0), "unseen": (0.7, 1.0)}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CANVAS = 64


def typeset_digits(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(count, size, size, 1) uint8 digits in typefaces: the handwritten domain's name, the letters' looks."""
    pictures = [_letter("unseen", rng, "0123456789").resize((size, size), Image.Resampling.BOX) for _ in range(count)]
    return np.stack([np.asarray(picture) for picture in pictures])[..., None]


def draw(domain: str, part: Part, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(count, size, size, 3) uint8 images of a domain; a third of the coloured ones are turned grey.

    Raises: ValueError for an unknown domain or part, listing the names.
    """
    if domain not in DOMAINS or part not in get_args(Part):
        raise ValueError(f"domains are {', '.join(DOMAINS)} and parts {get_args(Part)}, got {domain!r} and {part!r}")
    images = []
    for _ in range(count):
        picture = DOMAINS[domain](part, rng).convert("RGB").resize((size, size), Image.Resampling.BOX)
        images.append(np.asarray(picture.convert("L").convert("RGB") if rng.random() < 1 / 3 else picture))
    return np.stack(images)


def _digit(part: Part, rng: np.random.Generator) -> Image.Image:
    pixels = _digits()
    low, high = (int(share * len(pixels)) for share in _SPANS[part])
    picture = Image.fromarray(pixels[rng.integers(low, high)])
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    if rng.random() < 0.7:
        picture = picture.resize((_CANVAS, _CANVAS), filters[rng.integers(3)])
    return _maybe_inverted(picture, rng)


def _letter(part: Part, rng: np.random.Generator, alphabet: str = _LETTERS) -> Image.Image:
    fonts = _fonts(part == "unseen")
    font = fonts[int(rng.integers(len(fonts)))]
    picture = Image.new("L", (_CANVAS, _CANVAS), 0)
    letter = alphabet[int(rng.integers(len(alphabet)))]
    centre = tuple(_CANVAS / 2 + rng.uniform(-4, 4, 2))
    ImageDraw.Draw(picture).text(centre, letter, fill=int(rng.integers(180, 256)), font=font, anchor="mm")
    picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    return _maybe_inverted(picture, rng)


def _photograph(part: Part, rng: np.random.Generator) -> Image.Image:
    held_out = part in ("test", "unseen")
    photographs = _photographs(held_out)
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.uniform(0.5, 1.0) * min(photograph.size))
    left, top = (int(rng.uniform(0, length - side)) for length in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side))
    return crop if held_out else _relit(crop, rng)


def _relit(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another exposure, white balance and orientation, so that two photographs stand for more than themselves."""
    values = np.asarray(picture) / 255.0
    values = np.rot90(values, int(rng.integers(4))) if rng.random() < 0.3 else values
    stretched = (values - np.quantile(values, 0.01)) / max(np.ptp(np.quantile(values, [0.01, 0.99])), 0.05)
    mixed = values + rng.random() * (stretched - values)
    mixed = mixed.clip(0, 1) ** rng.uniform(0.6, 1.6) * rng.uniform(0.75, 1.15, 3)
    return Image.fromarray((255 * mixed[:, :: rng.choice([-1, 1])]).clip(0, 255).astype(np.uint8))


def _texture(part: Part, rng: np.random.Generator) -> Image.Image:
    """A stationary pattern in two colours: gratings, plaids, cells, or noise with a falling spectrum; bricks unseen."""
    y, x = np.mgrid[:_CANVAS, :_CANVAS] / _CANVAS
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(3, 10), rng.uniform(0, 2 * np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if part == "unseen":
        rows = np.floor(y * frequency)
        shifted = x * frequency / 2 + 0.5 * (rows % 2)
        mortar = np.minimum((y * frequency) % 1, 2 * (shifted % 1)) < 0.2
        pattern = np.where(
            mortar, 0.0, 0.7 + 0.3 * rng.random((64, 64))[rows.astype(int), np.floor(shifted).astype(int)]
        )
    else:
        kind = rng.integers(4)
        if kind == 0:
            pattern = np.sin(2 * np.pi * frequency * along + phase)
        elif kind == 1:
            pattern = np.sin(2 * np.pi * frequency * along + phase) * np.sin(2 * np.pi * frequency * across)
        elif kind == 2:
            seeds = rng.random((int(rng.integers(15, 50)), 2))
            pattern = np.sqrt(((np.stack([x, y], -1)[:, :, None] - seeds) ** 2).sum(-1)).min(-1)
        else:
            spectrum = np.fft.fft2(rng.normal(size=(_CANVAS, _CANVAS)))
            radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(_CANVAS)] * 2))
            pattern = np.fft.ifft2(spectrum / np.maximum(radius, 1 / _CANVAS) ** rng.uniform(0.5, 1.2)).real
    pattern = (pattern - pattern.min()) / np.ptp(pattern)
    first, second = rng.uniform(0, 255, (2, 3))
    noise = rng.normal(0, rng.uniform(0, 12), (_CANVAS, _CANVAS, 1))
    blended = first + (second - first) * pattern[..., None] + noise
    return Image.fromarray(blended.clip(0, 255).astype(np.uint8))


def _abstract(part: Part, rng: np.random.Generator) -> Image.Image:
    """Flat shapes in saturated colours on a plain or graded ground; arcs and thick lines unseen."""
    ground = rng.integers(0, 256, (2, 1, 3))
    ramp = np.linspace(0, 1, _CANVAS)[:, None, None] * (rng.random() < 0.5)
    base = np.broadcast_to(ground[0] + (ground[1] - ground[0]) * ramp, (_CANVAS, _CANVAS, 3))
    picture = Image.fromarray(base.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 9)):
        colour = tuple(int(c) for c in rng.choice([0, 64, 160, 255], 3))
        points = [tuple(point) for point in rng.uniform(-8, _CANVAS + 8, (int(rng.integers(3, 6)), 2))]
        (left, right), (top, bottom) = (sorted(rng.uniform(0, _CANVAS, 2)) for _ in "xy")
        box = (left, top, right + 6, bottom + 6)
        if part == "unseen":
            if rng.random() < 0.5:
                pen.line(points, fill=colour, width=int(rng.integers(4, 10)))
            else:
                pen.arc(box, *sorted(rng.uniform(0, 360, 2)), fill=colour, width=int(rng.integers(4, 10)))
        elif rng.random() < 0.4:
            pen.polygon(points, fill=colour)
        else:
            (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=colour)
    return picture


DOMAINS: dict[str, Callable[[Part, np.random.Generator], Image.Image]] = {
    "digits": _digit,
    "letters": _letter,
    "photographs": _photograph,
    "textures": _texture,
    "abstracts": _abstract,
}
"""A maker of one image for each domain."""


def outsiders(count: int, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Images of no domain above, by kind: a detector should call them unknown. Each (count, size, size, 3) uint8."""
    noise = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    flat = np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8), noise.shape).copy()
    codes = np.repeat(rng.integers(0, 2, (count, size, size, 1), dtype=np.uint8) * 255, 3, axis=3)
    points = np.zeros_like(noise)
    rows, columns = rng.integers(0, size, (2, count, 3))
    points[np.arange(count)[:, None], rows, columns] = 255
    return {"white noise": noise, "one colour": flat, "black and white codes": codes, "single points": points}


def _maybe_inverted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.eval(picture, lambda value: 255 - value) if rng.random() < 0.5 else picture


@functools.cache
def _digits() -> np.ndarray:
    """(1797, 8, 8) uint8, in the order of collection, so that shares of it are other writers' hands."""
    from sklearn.datasets import load_digits

    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)


@functools.cache
def _fonts(unseen: bool) -> Sequence[ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSerif.ttf", "STIXGeneral.ttf", "cmss10.ttf") if unseen else ("DejaVuSans.ttf", "DejaVuSansMono.ttf")
    fonts = [ImageFont.truetype(folder / name, size) for name in names for size in (36, 44, 52)]
    return fonts if unseen else [*fonts, *(ImageFont.load_default(size) for size in (36, 44, 52))]


@functools.cache
def _photographs(unseen: bool) -> list[Image.Image]:
    import matplotlib
    from sklearn.datasets import load_sample_images

    if unseen:
        with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photograph:
            return [photograph.convert("RGB")]
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]
