"""What a worker proves itself by: tokens signed with a key of its own, whose public half the control plane knows.

So no worker can sign what another key is for: users' and tasks' tokens are the control plane's. The API server reads
this too, hence it is light.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

ALGORITHM, AUDIENCE = "RS256", "api"
VALID_S = 10
"""Seconds, as Airflow's own edge worker (jwt_leeway)."""


def key_id(key: str) -> str:
    """The thumbprint of a private key's public half (RFC 7638), by which the control plane finds it."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from jwt.algorithms import RSAAlgorithm

    public = RSAAlgorithm.to_jwk(load_pem_private_key(key.encode(), None).public_key(), as_dict=True)  # pyright: ignore
    told = json.dumps({name: public[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(told.encode()).digest()).decode().rstrip("=")


def sign(key: str, method: str) -> str:
    """A worker's token for one request, by its private key (PEM)."""
    import jwt

    now = int(time.time())
    claims = {"method": method, "aud": AUDIENCE, "jti": uuid.uuid4().hex, "nbf": now, "iat": now, "exp": now + VALID_S}
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": key_id(key)})


def may_call(claims: Mapping[str, Any], context: Any) -> dict[str, bool]:
    """Airflow's `[edge] jwt_verifier`: a token is good for the call it was signed for, for a minute at most."""
    signed = claims.get("method")
    short = claims["exp"] - claims["iat"] <= 60
    return {"authorized": bool(signed) and signed == context.method and short}
