"""How a class is called in text: its caption where its images have none, and what makes two spellings the same name.

Training makes captions with `class_caption`, serving finds classes in prompts by `name_key`; a class' caption always
has the class' key, so what a model was trained on names its class.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from mlx_tasks.data.text import clean_caption

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that set no spaces between words, as their letters' names begin."""
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")
"""What keyboards and phones make of an apostrophe."""
_HUMP = re.compile(r"(?<=[^\W\d_]{3})(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ][^\W\d_]{2})")


class Squeezed(NamedTuple):
    """A text without case and separators, and where words begin and end in it.

    Attributes:
        text: the letters that are left.
        starts: places (0 to len(text) - 1) at which a word begins.
        ends: places (1 to len(text)) at which one has ended.
    """

    text: str
    starts: list[int]
    ends: frozenset[int]


def class_caption(label: str) -> str | None:
    """A class' name as words: `golden_retriever`, `golden-retriever` and `GoldenRetriever` have spaces there.

    Case stays as it is; a hump divides words where both have three letters or more: `McLaren` and `iPhone` stay whole.
    """
    words = "".join(" " if _separates(letter) else letter for letter in label)
    return clean_caption(_HUMP.sub(" ", words)) or clean_caption(label)


def name_key(text: str) -> str:
    """What equal names have in common: case, Unicode's forms, spaces, `_`, hyphens and humps make no difference."""
    return squeeze(text).text


def squeeze(text: str) -> Squeezed:
    """A text as `name_key` has it, with its words' ends; in scripts without spaces a word ends at every letter."""
    letters: list[str] = []
    starts: list[int] = []
    ends: set[int] = set()
    before = " "
    plain = text.translate(_APOSTROPHES)
    for letter in unicodedata.normalize("NFC", unicodedata.normalize("NFKC", plain).casefold()):
        if _separates(before) or _separates(letter) or _parts(before, letter):
            ends.add(len(letters))
            if not _separates(letter):
                starts.append(len(letters))
        if not _separates(letter):
            letters.append(letter)
        before = letter
    return Squeezed("".join(letters), starts, frozenset({*ends, len(letters)}))


def _separates(letter: str) -> bool:
    return letter.isspace() or letter == "_" or unicodedata.category(letter) == "Pd"


def _parts(one: str, other: str) -> bool:
    """Whether a word may end between two letters that stand beside each other."""
    if unicodedata.category(other).startswith("M"):
        return False
    return not (_of_word(one) and _of_word(other)) or _unspaced(one) or _unspaced(other)


def _of_word(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter).startswith("M")


def _unspaced(letter: str) -> bool:
    return not letter.isascii() and unicodedata.name(letter, "").startswith(UNSPACED)
