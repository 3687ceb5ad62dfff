"""Random keys named by what they are for, so that no random state has to be saved."""

from __future__ import annotations

import hashlib

import mlx.core as mx


def named_key(*parts: int | str) -> mx.array:
    """The key of a name such as (seed, "train", rung, step): equal names give equal keys in every process.

    The name is hashed to 64 bits, so keys of neighbouring steps share nothing.
    """
    name = "/".join(str(part) for part in parts).encode("utf-8")
    return mx.random.key(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
