"""What would go and what stays, by kind: what `clean` prints, and does when it is told to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from mlx_tasks.errors import DataError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0}


class Item(NamedTuple):
    """One thing that goes: its name, its bytes (0 where nobody can tell), and how it is taken away.

    Taking away what is gone already does nothing: a clean that was killed is begun again.
    """

    name: str
    size: int
    remove: Callable[[], None]


@dataclass
class Area:
    """One kind of thing.

    Attributes:
        title: for people.
        goes: in the order in which they are taken away.
        stays: {why: how many}.
        note: what else is to be known.
    """

    title: str
    goes: list[Item] = field(default_factory=list)
    stays: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def sort(self, item: Item, why_not: str) -> None:
        """Put a thing where it belongs.  why_not: why it stays, or empty."""
        if why_not:
            self.stays[why_not] += 1
        else:
            self.goes.append(item)

    @property
    def size(self) -> int:
        """Bytes that would be free."""
        return sum(item.size for item in self.goes)


def seconds(text: str) -> float:
    """`30d`, `12h` or `90m` as seconds.  Raises: DataError for another text."""
    found = re.fullmatch(r"(\d{1,6})([dhm])", text.strip())
    if found is None:
        raise DataError(
            f"--older-than takes a whole number of days, hours or minutes, as 30d, 12h or 90m; got {text!r}"
        )
    return int(found[1]) * _UNITS[found[2]]
