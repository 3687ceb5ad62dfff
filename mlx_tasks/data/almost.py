"""Which picture a row most likely means where it names none: other case, extension, slashes, escapes or folder."""

from __future__ import annotations

import os
import unicodedata
from urllib.parse import unquote


class Almost:
    """The dataset's paths by what is left of them when spelling is not taken strictly."""

    def __init__(self, paths: list[str]) -> None:
        self._exact = set(paths)
        self._folded: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._name_stems: dict[str, str] = {}
        self._several: set[str] = set()
        for path in paths:
            folded = path.casefold()
            stem = os.path.splitext(folded)[0]
            self._folded.setdefault(folded, path)
            self._stems.setdefault(stem, path)
            for known, key in ((self._names, os.path.basename(folded)), (self._name_stems, os.path.basename(stem))):
                if known.setdefault(key, path) != path:
                    self._several.add(known[key])

    def told(self, base: str, name: str) -> str:
        """`; almost 'images/1.png' (backslashes)` for a row under the folder `base`, or nothing."""
        slashed = name.strip().replace("\\", "/")
        plain = unquote(slashed, errors="replace")
        ways = ["backslashes"] * ("\\" in name) + ["URL-encoded"] * (plain != slashed)
        target = unicodedata.normalize("NFC", os.path.normpath(os.path.join(base, plain.lstrip("/"))))
        folded = target.casefold()
        stem = os.path.splitext(folded)[0]
        tries = (
            (target if target in self._exact else None, "a leading slash" if plain.startswith("/") else ""),
            (self._folded.get(folded), "upper and lower case"),
            (self._stems.get(stem) or self._stems.get(folded), "another extension"),
            (self._names.get(os.path.basename(folded)), "another folder"),
            (
                self._name_stems.get(os.path.basename(stem)) or self._name_stems.get(os.path.basename(folded)),
                "another folder and extension",
            ),
        )
        for found, way in tries:
            if found is not None:
                if found in self._several and way.startswith("another folder"):
                    way += ", of several"
                return f"; almost {found!r} ({', '.join([*ways, way] if way else ways)})"
        return ""
