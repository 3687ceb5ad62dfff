"""Whose certificates this machine believes: the public authorities, and a control plane's own."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import MutableMapping
from pathlib import Path

import certifi

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_text

AUTHORITY_VARIABLE = "ADO_AUTHORITY"
READ_BY = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "AIRFLOW__API__SSL_CA_FILE")
"""Where Python's own library and httpx, requests, Amazon's client and Airflow's look for a file of authorities."""


def believe(environment: MutableMapping[str, str]) -> None:
    """Let what reads this environment believe the authority of ADO_AUTHORITY (base64 of PEM), beside the public ones.

    The file of them all is kept under ADO_STATE.  Raises: DataError for a value that is none.
    """
    told = environment.get(AUTHORITY_VARIABLE)
    if not told:
        return
    try:
        own = base64.b64decode(told, validate=True).decode()
        ssl.create_default_context(cadata=own)
    except (binascii.Error, UnicodeDecodeError, ssl.SSLError):
        raise DataError(
            f"{AUTHORITY_VARIABLE} must be a certificate as make_secrets.py writes it (base64 of PEM)"
        ) from None
    state = environment.get("ADO_STATE") or Path(environment.get("ADO_REPOSITORY") or Path.cwd()) / ".state"
    path = Path(state).resolve() / "worker" / "authorities.pem"
    text = Path(certifi.where()).read_text(encoding="utf-8") + "\n" + own
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write_text(path, text)
    environment.update(dict.fromkeys(READ_BY, str(path)))


def authorities() -> ssl.SSLContext:
    """For a client that reads no environment: what SSL_CERT_FILE names, else the public authorities."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
