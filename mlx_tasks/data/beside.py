"""Captions beside pictures: 1.txt or 1.caption beside 1.png, as trainers of image models lay them out."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from itertools import takewhile

from mlx_tasks.data.tree import Tree

MAX_BYTES = 1 << 16
"""A caption file above this is no caption."""

LEAST_SHARE = 0.1
"""Share of the images in their folders below which caption files are something else (a licence beside its logo)."""

_LONG, _NO_TEXT = f"over {MAX_BYTES >> 10} KB", "whose bytes are no UTF-8 text"
_OF_BOXES = "of boxes, a class and numbers a line"
_BOXES = re.compile(r"\d+(\s+-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?){4,}")
_SETTINGS = re.compile(r"Steps: \d+, \w")
_AFTER_PROMPT = re.compile(r"Negative prompt:|Steps: \d+, \w")
"""Lines of the text that Stable Diffusion's web interfaces write beside a picture; the prompt stands before them."""


def _prompt(lines: list[str]) -> list[str]:
    """The prompt of such a text, one caption whatever lines it has."""
    prompt = " ".join(takewhile(lambda line: not _AFTER_PROMPT.match(line), lines))
    return [prompt] if prompt else []


class Beside:
    """Reads the caption beside a picture, and counts those that are none.

    Attributes:
        read: captions by extension; empty files count under "empty".
        unlike: files that are no captions, by why.
        lost: {picture: why its caption cannot be read}.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.read: Counter[str] = Counter()
        self.unlike: Counter[str] = Counter()
        self.lost: dict[str, str] = {}
        folders = Counter(path.rpartition("/")[0] for path in tree.beside)
        images = sum(path.rpartition("/")[0] in folders for path in tree.paths) if folders else 0
        self._few = len(tree.beside) < LEAST_SHARE * images
        if self._few:
            self.unlike["beside images, too few to be captions of them all"] = len(tree.beside)

    def captions(self, path: str) -> list[str] | None:
        """The lines of the file beside the picture, each a caption; [] where it is empty, None where there is none."""
        file = None if self._few else self._tree.caption_file(path)
        if file is None:
            return None
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
            text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
        except OSError as error:
            return self._unlike(path, f"that cannot be read ({error.strerror})")
        except UnicodeDecodeError:
            return self._unlike(path, _NO_TEXT if len(data) <= MAX_BYTES else _LONG)
        if len(data) > MAX_BYTES:
            return self._unlike(path, _LONG)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines and all(_BOXES.fullmatch(line) for line in lines):
            return self._unlike(path, _OF_BOXES)
        if any(_SETTINGS.match(line) for line in lines):
            lines = _prompt(lines)
        self.read[file.suffix if lines else "empty"] += 1
        return lines

    def _unlike(self, path: str, why: str) -> None:
        self.unlike[why] += 1
        if why is not _OF_BOXES:
            self.lost[path] = why
        return None
