"""Where images come from: a built-in set named by a card, or a folder; either way a listing of candidates."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_tasks.data.listing import Listing
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.text import clean_caption, clean_label, seeded_choice
from mlx_tasks.data.told import Told
from mlx_tasks.errors import DataError
from mlx_tasks.params import resolved
from mlx_tasks.yaml_text import read_yaml

MAX_TEMPLATE = 1000
MAX_NAME = 200
"""Longest caption and name of a card (characters): each image has both."""


@dataclass(frozen=True)
class Source:
    """A dataset as its source tells it.

    Attributes:
        name: for people.
        candidates: in an order of their own (by path), the same on every machine.
        class_order: the classes where a card fixes their order; empty where they are to be sorted.
        facts: what the card or the folder says of itself (title, licence, metadata files), for the summary.
        told: what was found, passed over and looks odd, for people.
    """

    name: str
    candidates: Listing
    class_order: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    told: Told = field(default_factory=Told)


def read_source(root: Path, path: str, seed: int, max_uncaptioned: float = 0.2) -> Source:
    """The source that `data.path` names: a card (.yaml) or a folder, relative to the workspace or absolute.

    max_uncaptioned: as `read_folder`.
    Raises: DataError where nothing is there, or what is there is neither, or holds no image.
    """
    from mlx_tasks.data.imagefolder import read_folder

    place = resolved(root, path)
    if place.is_dir():
        return read_folder(place, seed, max_uncaptioned)
    if place.is_file() and place.suffix in (".yaml", ".yml"):
        return read_card(place, seed)
    found = "a file that is no dataset card (.yaml)" if place.exists() else "nothing"
    raise DataError(f"data.path must name a folder of images or a dataset card; at {place} there is {found}")


def read_card(path: Path, seed: int) -> Source:
    """The built-in set of a dataset card: `loader`, `classes`, and `captions` with `{label}` in them.

    Each image's caption is one of the templates, by a hash of (seed, its path).
    Raises: DataError where the card lacks a key, names no known loader, or disagrees with what the loader gives.
    """
    card = read_yaml(path)
    needed = ("name", "loader", "images", "side", "classes", "captions")
    if not isinstance(card, dict) or any(key not in card for key in needed):
        raise DataError(f"{path} must hold the keys {', '.join(needed)}: see include/datasets/digits.yaml")
    if not isinstance(card["loader"], str) or card["loader"] not in LOADERS:
        raise DataError(f"{path}: loader must be one of {', '.join(LOADERS)}; got {card['loader']!r:.80}")
    if not isinstance(card["name"], str) or not 0 < len(card["name"]) <= MAX_NAME:
        raise DataError(f"{path}: name must be text of 1 to {MAX_NAME} characters, got {card['name']!r:.80}")
    for key in ("classes", "captions"):
        if not isinstance(card[key], list) or not card[key]:
            raise DataError(f"{path}: {key} must be a list with an entry at least, got {card[key]!r:.80}")
    if bad := [one for one in card["captions"] if not _is_template(one)]:
        raise DataError(
            f"{path}: a caption is text, and {{label}} its only field, plain (a brace itself is {{{{ or }}}}); "
            f"got {bad[0]!r:.80}"
        )
    images, labels = LOADERS[card["loader"]]()
    try:
        names = [clean_label(name) or "" for name in card["classes"]]
    except Refusal as refusal:
        raise DataError(f"{path}: classes: {refusal.detail}") from None
    shape = (card["images"], card["side"], card["side"])
    if images.shape[:3] != shape or labels.max() >= len(names):
        raise DataError(
            f"{path} says {shape} images of {len(names)} classes and {len(card['captions'])} captions; "
            f"{card['loader']} gives {images.shape[:3]} of {labels.max() + 1}"
        )
    width = len(str(len(images) - 1))
    candidates = Listing(images=images)
    for i, label in enumerate(labels):
        name = f"{card['name']}/{i:0{width}}"
        template = card["captions"][seeded_choice(seed, name) % len(card["captions"])]
        caption = clean_caption(template.format(label=names[label]))
        candidates.append(name, label=names[label], caption=caption)
    facts = {key: card[key] for key in ("title", "source", "licence") if key in card}
    told = Told([f"{len(images)} images of {len(names)} classes, the built-in set {path.name}"])
    return Source(str(card["name"]), candidates, names, facts, told)


def _is_template(text: object) -> bool:
    """Whether a caption is text of at most 1000 characters whose only field is {label}, without width or attribute.

    A field's width would be room asked for: `{label:500000000}` is half a gigabyte for each image.
    """
    if not isinstance(text, str) or not text or len(text) > MAX_TEMPLATE:
        return False
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        return False
    return all(name in (None, "label") and not width and turn is None for _, name, width, turn in parts)


def digits_to_uint8(values: np.ndarray) -> np.ndarray:
    """Pixel counts 0..16 as 0..255: rint(v * 255 / 16).  rint(u * 16 / 255) brings each back.  Any shape."""
    return np.rint(values * (255 / 16)).astype(np.uint8)


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    return digits_to_uint8(np.asarray(values).reshape(-1, 8, 8)), np.asarray(targets)


LOADERS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"sklearn.datasets.load_digits": _load_digits}
"""Loader names a card may use: each gives ((N, H, W) or (N, H, W, 3) uint8, (N,) class numbers)."""
