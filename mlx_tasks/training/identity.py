"""What a training is a function of, as one short text, so that a checkpoint of another is never gone on from."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def identity_of(**parts: Any) -> str:
    """SHA-256 of named JSON values, 16 hex digits; equal parts in any order give equal identities."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
