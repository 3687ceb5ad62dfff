"""Damage of bytes and of JSON values: the same for the same random generator."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_DEEP = "deep-99999"
_HUGE = "huge-99999"
_ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, -1e308, 1e-320, float("nan"), float("inf"),
    "", " ", "x", "\ud800", "\x00", "\u202e", "../../etc/passwd", "1e999", "nan", "x" * 100_000, [], {}, [None], [[]],
    {"": ""}, {"a": {"b": {}}}, [0] * 2000, _DEEP, _HUGE,
)  # fmt: skip


def damaged_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`data` after one to six changes; `other` is what parts are spliced in from."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.7 else rng.randrange(min(len(out), 64) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(out) - place)
        match rng.randrange(8):
            case 0 if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(out):
                out[place] = rng.randrange(256)
            case 2:
                del out[place:]
            case 3:
                del out[place : place + length]
            case 4:
                out[place:place] = out[place : place + length] * rng.choice((1, 2, 50))
            case 5:  # a length, a count, an offset
                width = rng.choice((1, 2, 4))
                number = rng.choice(_NUMBERS) & (256**width - 1)
                out[place : place + width] = number.to_bytes(width, rng.choice(("big", "little")))
            case 6 if other:
                start = rng.randrange(len(other))
                out[place:place] = other[start : start + rng.choice((1, 8, 100, 5000))]
            case _:
                out[place : place + length] = rng.randbytes(length)
    return bytes(out)


def damaged_json(value: Any, rng: random.Random) -> bytes:
    """The JSON text of `value` after one to three changes of its tree, and now and then of its bytes."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(value, rng)
    text = json.dumps(value)
    text = text.replace(f'"{_DEEP}"', "[" * 50_000 + "]" * rng.choice((0, 50_000)), 1)
    text = text.replace(f'"{_HUGE}"', "9" * rng.choice((400, 5000)), 1)
    if rng.random() < 0.1 and text.startswith('{"'):  # a key twice
        end = text.find(",")
        text = text[:end] + ", " + text[1:end] + text[end:] if end > 0 else text
    data = text.encode("utf-8", "surrogatepass")
    return damaged_bytes(data, b'{"a": [1, null]}\xff\xfe\x00', rng) if rng.random() < 0.15 else data


def _changed(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return copy.deepcopy(rng.choice(_ODD))
    parent, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(("", "x", "\ud800", str(key).upper(), "__class__", f"{key} "))] = copy.deepcopy(
                rng.choice(_ODD)
            )
        case 2:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                parent[key] = copy.deepcopy(other[name])
        case 3 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = parent[key] * rng.choice((-1, 0, 2, 0.5, 1e6, 1e300))
        case _:
            parent[key] = copy.deepcopy(rng.choice(_ODD))
    return value


def _places(value: Any) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
