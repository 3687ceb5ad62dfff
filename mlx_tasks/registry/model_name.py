"""Under which name a dataset's model is registered, unless params say another.  Light: opening a run imports it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

import yaml

from mlx_tasks.config import AUTO_NAME, Config, Register
from mlx_tasks.params import resolved

SUFFIX = "-sampler"
SAYS_NOTHING = frozenset({"data", "dataset", "datasets", "image", "images", "img", "imgs", "train", "training"})
"""Folder names that tell no dataset from another: the folder above is named as well."""
LONGEST = 80


def with_model_name(config: Config, root: Path) -> Config:
    """The tree with a name where `register.model_name` is auto.  root: what a relative `data.path` starts from."""
    if config.register_.model_name != AUTO_NAME:
        return config
    name = name_of_dataset(root, config.data.path)
    return config.model_copy(update={"register_": Register(model_name=name)})


def name_of_dataset(root: Path, path: str) -> str:
    """`digits-sampler` for the card of digits, `cats-sampler` for a folder cats, `cats-images-sampler` for cats/images.

    Two folders can still end in one name; whether a model takes their images is asked again where it is registered
    (registry/same_data.py).
    """
    place = resolved(root, path)
    if place.suffix in (".yaml", ".yml"):
        return _slug(card_name(place)) + SUFFIX
    parts = [place.name]
    for parent in place.parents:
        if not parent.name or _slug(parts[0]) not in SAYS_NOTHING:
            break
        parts.insert(0, parent.name)
    return _slug(" ".join(parts)) + SUFFIX


def card_name(path: Path) -> str:
    """What a dataset card calls its set; the file's name where it says nothing or cannot be read."""
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        card = None
    return str(card["name"]) if isinstance(card, dict) and card.get("name") else path.stem


def _slug(text: str) -> str:
    """Lower-case letters, digits and hyphens; a digest of the text where it has none of them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:LONGEST].strip("-")
    return slug or "dataset-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
