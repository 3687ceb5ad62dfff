"""SVG by hand: axes, marks and lines as text, styled by the page so that they follow light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

MARKS = ("circle", "square", "triangle", "diamond", "cross", "plus", "down", "ring", "bar", "dash")
"""A shape for each series, so that colour is never the only difference."""


@dataclass(frozen=True)
class Axis:
    """Values along one side of a plot.

    Attributes:
        low, high: values at the ends.
        start, end: their places (pixels).
        log: whether places go with the logarithm.
        ticks: (value, label) pairs; made from the range if none are given.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    given_ticks: tuple[tuple[float, str], ...] = ()

    def __call__(self, value: float) -> float:
        """The place of a value (pixels)."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """(value, label) of each tick inside the range."""
        if self.given_ticks:
            return self.given_ticks
        values = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return tuple((value, number(value)) for value in values)


def axis_over(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    zero: bool = False,
    ticks: Sequence[tuple[float, str]] = (),
) -> Axis:
    """An axis that holds all finite values with some room; with `zero` it begins at 0. Log leaves out values <= 0."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(found), max(found)) if found else (1.0, 2.0)
    if log:
        room = max(1.15, (high / low) ** 0.06)
        return Axis(low / room, high * room, start, end, True, tuple(ticks))
    low = min(0.0, low) if zero else low
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    return Axis(low if zero and low == 0 else low - room, high + room, start, end, False, tuple(ticks))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: three significant digits, thousands grouped, never 1e-05, a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 10.0**-digits / 10:
        exponent = math.floor(math.log10(size))
        power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10**exponent:.1f} × 10{power}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


def element(name: str, text: str = "", **attributes: object) -> str:
    """One SVG element. `class_` and `text_anchor` are written class and text-anchor; numbers get two decimals."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{text}</{name}>" if text else f"<{name}{written}/>"


def label(x: float, y: float, text: str, class_: str = "tick", anchor: str = "start", **more: object) -> str:
    """A piece of text; `text` is escaped."""
    return element("text", escape(text), x=x, y=y, class_=class_, text_anchor=anchor, **more)


def mark(shape: str, x: float, y: float, class_: str, title: str = "", size: float = 5.0) -> str:
    """A marker of a shape of MARKS; `title` shows when pointed at."""
    s = size
    tip = element("title", escape(title)) if title else ""
    match shape:
        case "circle":
            return element("circle", tip, cx=x, cy=y, r=s, class_=f"mark {class_}")
        case "ring":
            return element("circle", tip, cx=x, cy=y, r=s, class_=f"mark open {class_}")
        case "square":
            return element("rect", tip, x=x - s, y=y - s, width=2 * s, height=2 * s, class_=f"mark {class_}")
        case "bar":
            return element("rect", tip, x=x - s / 2, y=y - s, width=s, height=2 * s, class_=f"mark {class_}")
        case "triangle":
            return element("path", tip, d=_path([(x, y - s), (x + s, y + s), (x - s, y + s)]), class_=f"mark {class_}")
        case "down":
            return element("path", tip, d=_path([(x, y + s), (x + s, y - s), (x - s, y - s)]), class_=f"mark {class_}")
        case "diamond":
            points = [(x, y - 1.3 * s), (x + 1.3 * s, y), (x, y + 1.3 * s), (x - 1.3 * s, y)]
            return element("path", tip, d=_path(points), class_=f"mark {class_}")
        case "dash":
            d = f"M{x - 1.5 * s:.2f},{y:.2f}L{x + 1.5 * s:.2f},{y:.2f}"
            return element("path", tip, d=d, class_=f"mark line {class_}")
        case "cross":
            d = f"M{x - s:.2f},{y - s:.2f}L{x + s:.2f},{y + s:.2f}M{x - s:.2f},{y + s:.2f}L{x + s:.2f},{y - s:.2f}"
            return element("path", tip, d=d, class_=f"mark line {class_}")
        case _:
            d = f"M{x - s:.2f},{y:.2f}L{x + s:.2f},{y:.2f}M{x:.2f},{y - s:.2f}L{x:.2f},{y + s:.2f}"
            return element("path", tip, d=d, class_=f"mark line {class_}")


def polyline(points: Iterable[tuple[float, float]], class_: str) -> str:
    """A line through points."""
    return element("polyline", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), class_=class_)


def frame(x: Axis, y: Axis, x_title: str, y_title: str, *, grid: bool = True) -> str:
    """Axis lines, ticks, grid lines and titles. y.start is the bottom (largest pixel)."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for value, text in y.ticks:
        place = y(value)
        if grid:
            parts.append(element("line", x1=left, x2=right, y1=place, y2=place, class_="grid"))
        parts.append(label(left - 6, place + 4, text, anchor="end"))
    for value, text in x.ticks:
        parts.append(element("line", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(label(x(value), bottom + 17, text, anchor="middle"))
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(label((left + right) / 2, bottom + 35, x_title, "title", "middle"))
    parts.append(label(left - 40, top - 10, y_title, "title"))
    return "".join(parts)


def picture(width: float, height: float, parts: Iterable[str], description: str) -> str:
    """The whole SVG; `description` is what a screen reader says."""
    body = element("title", escape(description)) + "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points) + "Z"


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) inside [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 times them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        values = [round(m * 10.0**e, 12) for e in exponents for m in multiples if low <= m * 10.0**e <= high]
        if len(values) >= 4:
            return values
    return values
