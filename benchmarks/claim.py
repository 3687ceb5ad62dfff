"""What a page says in figures, and the stored results that they come from.

A file in benchmarks/claimed/ speaks for one page. It says each sentence or table row again with its figures computed
from benchmarks/results/, and the page must hold the same words:

    page = Page("README.md")
    demo = page.result("demo_results")
    page.says(f"and {ratio:.1f} times as fast as the best teacher sampler")
    page.given("95 %", "the level of every interval: a setting")

A figure is a number with a decimal point, with thousands apart, or with a unit of time, size, share or multiple. None
are a version ("Python 3.11") and a default right after its setting: `--poll` (2 s). A figure that no `says` covers must
stand in a `given` with a reason: a setting, a definition, what a source published, or the test that holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_UNITS = (
    r"%|‰|times\b|ms\b|s\b|seconds?\b|min\b|minutes?\b|hours?\b|days?\b|[kMG]i?B\b|bytes\b|images? a second\b|"
    r"steps? a second\b|episodes\b|evaluations\b|requests\b"
)
_FIGURE = re.compile(
    r"(?<![\w.,/@#-])(?<!Python )(?<!YAML )(?<!Compose )(?<!diffusers )(?<!_ \()[+-]?"
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+(?!\.?\d|e-)|\d+(?=\s(?:" + _UNITS + r"))|\d+(?=%))"
    r"(?![\w./-]*\w[/.]\w)"
)
_CODE = re.compile(r"^```.*?^```[^\n]*$|`[^`]*`|<!--.*?-->|(?<=\]\()[^)\s]*(?=\))", re.DOTALL | re.MULTILINE)


class Page:
    """One page and what is said of its figures.

    Args:
        name: its path from the checkout's root.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[str] = []
        self.results: set[str] = set()
        self._text = (ROOT / name).read_text(encoding="utf-8")
        self._flat, self._lines = _flattened(self._text)
        self._covered = [False] * len(self._flat)

    def result(self, name: str) -> dict[str, Any]:
        """A stored result, whole: question, command, commit, config, rows."""
        self.results.add(name)
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

    def says(self, words: str) -> None:
        """The page holds these words, whose figures are computed; blanks and line ends count alike."""
        if not self._cover(words):
            self.errors.append(f"{self.name} does not say, as its results do: {_one_line(words)}")

    def row(self, *cells: object) -> None:
        """The page holds this row of a table."""
        self.says("| " + " | ".join(str(cell) for cell in cells) + " |".replace("  ", " "))

    def holds(self, fact: bool, words: str) -> None:
        """What the page says in words ("everywhere", "half") is so."""
        if not fact:
            self.errors.append(f"{self.name}: its results do not show that {words}")

    def given(self, words: str, reason: str) -> None:
        """These words hold figures that no benchmark measured, and why they may: setting, definition, source, test."""
        assert len(reason) > 5, reason
        if not self._cover(words):
            self.errors.append(f"{self.name} no longer says {_one_line(words)!r}: take it off the list")

    def without_result(self) -> Iterator[str]:
        """Each figure that is neither computed nor given, with its line."""
        masked = _masked(self._text)
        flat, lines = _flattened(masked)
        assert len(flat) == len(self._flat)
        for found in _FIGURE.finditer(flat):
            if not all(self._covered[found.start() : found.end()]):
                around = flat[max(0, found.start() - 40) : found.end() + 30]
                yield f"{self.name}:{lines[found.start()]}: {found.group()} has no stored result: ...{around}..."

    def _cover(self, words: str) -> bool:
        words, found, start = _one_line(words), False, 0
        while (place := self._flat.find(words, start)) >= 0:
            self._covered[place : place + len(words)] = [True] * len(words)
            found, start = True, place + len(words)
        return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _masked(text: str) -> str:
    """The text with code, comments and link targets as blanks-that-are-not-blank, so that places stay the same."""
    return _CODE.sub(lambda found: re.sub(r"\S", "_", found.group()), text)


def _flattened(text: str) -> tuple[str, list[int]]:
    """(the text with every run of blanks as one blank, the line of each character)."""
    out: list[str] = []
    lines: list[int] = []
    line, blank = 1, True
    for character in text:
        if character.isspace():
            if not blank:
                out.append(" ")
                lines.append(line)
            blank = True
        else:
            out.append(character)
            lines.append(line)
            blank = False
        line += character == "\n"
    return "".join(out), lines
