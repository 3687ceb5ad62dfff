"""Labels and captions as they are kept: Unicode NFC, one line, any script."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

from mlx_tasks.data.reasons import Refusal

MAX_LABEL_LENGTH = 200
_NOTHING = frozenset({"Cf", "Zs"})
"""Categories of what is not seen: a text of them alone is empty (zero-width spaces, marks of direction)."""


def clean_caption(value: Any, choice: int = 0) -> str | None:
    """A caption in NFC with runs of white space as one space and control characters gone, or None where it is empty.

    A list of captions gives the one at `choice` modulo its length (the caller's seeded number).
    Lone surrogates, which JSON can spell and UTF-8 cannot, become a question mark.
    """
    if isinstance(value, list):
        texts = [item for item in value if isinstance(item, str) and item.strip()]
        value = texts[choice % len(texts)] if texts else None
    if not isinstance(value, str):
        return None
    text = " ".join(_printable(value).split())
    return text if any(unicodedata.category(letter) not in _NOTHING for letter in text) else None


def clean_label(value: Any) -> str | None:
    """A label in NFC, or None where there is none (null, empty).

    Raises: Refusal (bad_label) unless it is text of one line and at most 200 characters, or a whole number.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refusal("bad_label", f"{value!r:.60} is {type(value).__name__}, not text or a whole number")
    text = unicodedata.normalize("NFC", str(value)).strip()
    if len(text) > MAX_LABEL_LENGTH or text != _printable(text) or len(text.splitlines()) > 1:
        raise Refusal("bad_label", f"{text!r:.60} holds control characters or more than {MAX_LABEL_LENGTH} characters")
    return text


def seeded_choice(seed: int, name: str) -> int:
    """A number in 0..2**64-1 from (seed, name) alone: the same on every machine and for any order of the images."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "big")


def _printable(text: str) -> str:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    spaced = "".join(" " if character.isspace() else character for character in unicodedata.normalize("NFC", text))
    return "".join(character for character in spaced if unicodedata.category(character) != "Cc")
