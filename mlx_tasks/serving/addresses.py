"""Which servers a deployment may be verified through, and so be shown the server's key: those that are configured.

An address typed in a form is a wish and no configuration: it gets nothing unless it is on the list. Light: a DAG file
imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from mlx_tasks.errors import DataError

URL_VARIABLE, URLS_VARIABLE = "ADO_SERVER_URL", "ADO_SERVER_URLS"
PLAIN_VARIABLE = "ADO_SERVER_PLAIN_HTTP"
_PORTS = {"http": 80, "https": 443}


def configured(environment: Mapping[str, str]) -> list[str]:
    """The addresses of ADO_SERVER_URL and of ADO_SERVER_URLS (with commas between), in that order, each once."""
    told = [environment.get(URL_VARIABLE, ""), *environment.get(URLS_VARIABLE, "").split(",")]
    return list(dict.fromkeys(url.strip().rstrip("/") for url in told if url.strip()))


def check_address(url: str, key: str | None, environment: Mapping[str, str]) -> str:
    """The address without a slash at its end, if it may be asked.

    With a key: one that is configured, over https or loopback (ADO_SERVER_PLAIN_HTTP=1 allows plain http too). Without
    one: one that is configured, or loopback.  Raises: DataError with the rule.
    """
    from mlx_tasks.serving.access import loopback

    parts = _parts(url)
    known = configured(environment)
    listed = _place(parts) in {_place(_parts(one)) for one in known}
    if not listed and (key or not loopback(parts.hostname or "")):
        what = "with a server's key" if key else "without one"
        raise DataError(
            f"{url!r:.200} is not a configured server, and {what} no other is asked: set {URL_VARIABLE} or "
            f"{URLS_VARIABLE} where this runs (there are: {', '.join(known) or 'none'})"
        )
    plain = parts.scheme == "http" and not loopback(parts.hostname or "")
    if key and plain and environment.get(PLAIN_VARIABLE) != "1":
        raise DataError(
            f"{url!r:.200} would be sent the server's key in plain text: use https, or set {PLAIN_VARIABLE}=1 on a "
            "network that nobody else reads"
        )
    return url.strip().rstrip("/")


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
        sound = parts.scheme in _PORTS and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, sound = urlsplit(""), False
    if not sound or parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise DataError(
            f"a server's address is http(s)://HOST[:PORT] with no name, query or fragment, got {url!r:.200}"
        )
    return parts


def _place(parts: SplitResult) -> tuple[str, str, int, str]:
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme], parts.path.rstrip("/")
