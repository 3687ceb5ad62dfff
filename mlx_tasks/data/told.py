"""What was found in a dataset, what was passed over and why, and what looks odd: plain lines for the first minute."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Told:
    """Lines for people.

    Attributes:
        found: pictures, classes, splits, captions.
        passed_over: files that say nothing here, and why.
        odd: what was perhaps meant otherwise, and what to do.
    """

    found: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """All of them, each with its kind before it."""
        kinds = (("found", self.found), ("passed over", self.passed_over), ("look at this", self.odd))
        return [f"{kind}: {escaped(line)}" for kind, lines in kinds for line in lines]


def escaped(text: str) -> str:
    """The text with control characters, which a name may hold and a terminal would obey, as their escapes."""
    return "".join(
        letter.encode("unicode_escape").decode() if _speaks_to_terminals(letter) else letter for letter in text
    )


def counted(count: int, one: str, several: str = "") -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def some(names: list[str], shown: int = 5) -> str:
    """The first few, and how many more."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def counts(numbers: Mapping[str, int], shown: int = 8) -> str:
    """`120 .txt, 3 hidden`, the most first."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return some([f"{count} {name}" for name, count in ordered], shown)


def _speaks_to_terminals(letter: str) -> bool:
    """Control characters, line ends, and overrides of direction, by which a name shows as another."""
    turns = unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return turns or unicodedata.category(letter) in ("Cc", "Zl", "Zp")
