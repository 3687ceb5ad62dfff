"""From a prompt to a class: its name, or a caption that holds one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mlx_tasks.errors import DataError

ANY_CLASS = -1


def class_of(prompt: str, class_names: Sequence[str]) -> int:
    """Index of the one class that a prompt names; ANY_CLASS for a bundle without classes.

    Case and Unicode form do not matter. A name counts where it stands as words of its own ("one" is not in "stone");
    in scripts that set no spaces it counts anywhere. A name inside a longer one that is there too ("lion" in
    "sea lion") does not count.
    Raises: DataError where no class or more than one is named, with the names.
    """
    if not class_names:
        return ANY_CLASS
    text = _folded(prompt)
    found = [(match.start(), match.end(), index) for index, name in enumerate(class_names) for match in _at(name, text)]
    outer = {
        index
        for start, end, index in found
        if not any(s <= start and end <= e and (e - s) > (end - start) for s, e, _ in found)
    }
    if len(outer) == 1:
        return outer.pop()
    names = ", ".join(class_names[:50]) + (", ..." if len(class_names) > 50 else "")
    if outer:
        both = " and ".join(repr(class_names[index]) for index in sorted(outer))
        raise DataError(f"the prompt must name one class, this one names {both}")
    raise DataError(f"the prompt must name one of the model's classes ({names}), got {prompt[:80]!r}")


def _at(name: str, text: str) -> list[re.Match[str]]:
    folded = _folded(name)
    if not folded:
        return []
    pattern = re.escape(folded)
    if folded.isascii() or _spaced(folded):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return list(re.finditer(pattern, text))


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold()).split())


def _spaced(text: str) -> bool:
    """Whether a text's script sets spaces between words: not Han, kana, Thai, Lao, Khmer or Burmese."""
    unspaced = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
    return not any(unicodedata.name(letter, "").startswith(unspaced) for letter in text)
