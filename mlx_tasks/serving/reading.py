"""From a body's bytes to JSON values that everything behind can hold: what is no sound JSON is refused by its rule."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

MOST_DIGITS = 20
"""Of a whole number."""


def read_body(data: bytes) -> Any:
    """The values of a JSON body.

    Raises: ValueError with the rule for text that is not UTF-8 or holds half a surrogate pair, nesting beyond what can
        be read, numbers that are not finite or too long, and a key that is there twice.
    """
    try:
        found = json.loads(
            data.removeprefix(codecs.BOM_UTF8).decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_once,
        )
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text is UTF-8, byte {error.start} is not") from None
    except UnicodeEncodeError:
        raise ValueError(r"text is Unicode, and half of a surrogate pair (\ud800 to \udfff) is none") from None
    except RecursionError:
        raise ValueError("values are nested too deep") from None
    return found


class JsonRequest(Request):
    """A request whose JSON is read by `read_body`."""

    async def json(self) -> Any:
        """Raises: json.JSONDecodeError, which the framework hands on as bad input."""
        try:
            return read_body(await self.body())
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class JsonRoute(APIRoute):
    """A route whose handler gets a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler, behind the reading."""
        handler = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return read


def _refuse_constant(text: str) -> float:
    raise ValueError(f"a number is finite, got {text}")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"a number is at most 1.8e308 in size, got {text[:40]}")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number has at most {MOST_DIGITS} digits, got {text[:MOST_DIGITS]}...")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"a key stands once, {twice[:40]!r} is there twice")
    return found
