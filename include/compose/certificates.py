"""Keys and certificates, made by the program `openssl` (macOS and Linux have it); Python's own library cannot.

What leaves this file is text: PEM of keys and certificates, and the public half of a key as a JSON Web Key.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import subprocess
import tempfile
from pathlib import Path

BITS, AUTHORITY_BITS = 2048, 3072
AUTHORITY_DAYS, SERVER_DAYS, RENEWED_DAYS = 3650, 800, 90
"""Apple's TLS takes no server's certificate that is valid for longer than 825 days."""
TIMEOUT_S = 120


def private_key(bits: int = BITS) -> str:
    """A new RSA key, PEM."""
    return _openssl("genrsa", str(bits))


def public_jwk(key: str, name: str) -> dict[str, str]:
    """The public half of a PEM key as a JSON Web Key (RFC 7517) under its thumbprint (RFC 7638), and whose it is."""
    told = _openssl("rsa", "-noout", "-modulus", given=key).strip()
    number = bytes.fromhex(told.removeprefix("Modulus="))
    public = {"e": _url64(b"\x01\x00\x01"), "kty": "RSA", "n": _url64(number)}
    kid = _url64(hashlib.sha256(json.dumps(public, separators=(",", ":")).encode()).digest())
    return {**public, "use": "sig", "alg": "RS256", "kid": kid, "name": name}


def authority() -> tuple[str, str]:
    """(key, certificate) of an authority of this control plane alone."""
    key = private_key(AUTHORITY_BITS)
    config = "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=adaptive-diffusion-optimizer\n"
    config += (
        "[ext]\nbasicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n"
    )
    with tempfile.TemporaryDirectory(prefix="certificates-") as folder:
        path = _private_file(folder, "key", key)
        settings = _private_file(folder, "config", config)
        days = str(AUTHORITY_DAYS)
        return key, _openssl("req", "-x509", "-new", "-sha256", "-days", days, "-key", path, "-config", settings)


def server(authority_key: str, authority_certificate: str, hosts: list[str]) -> tuple[str, str]:
    """(key, certificate) of a server under these names and addresses, signed by the authority."""
    key = private_key()
    config = f"[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN={hosts[0][:60]}\n[ext]\nbasicConstraints=CA:false\n"
    config += "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\n"
    config += f"subjectAltName={','.join(_alternative(host) for host in hosts)}\n"
    with tempfile.TemporaryDirectory(prefix="certificates-") as folder:
        paths = {
            name: _private_file(folder, name, text)
            for name, text in (
                ("key", key),
                ("config", config),
                ("ca", authority_certificate),
                ("cakey", authority_key),
            )
        }
        request = _openssl("req", "-new", "-sha256", "-key", paths["key"], "-config", paths["config"])
        made = _openssl(
            "x509", "-req", "-sha256", "-days", str(SERVER_DAYS), "-in", _private_file(folder, "request", request),
            "-CA", paths["ca"], "-CAkey", paths["cakey"], "-CAcreateserial", "-CAserial", f"{folder}/serial",
            "-extfile", paths["config"], "-extensions", "ext",
        )  # fmt: skip
    return key, made


def is_good(certificate: str, hosts: list[str]) -> bool:
    """Whether a certificate names all of these hosts and is valid for three months more."""
    try:
        _openssl("x509", "-noout", "-checkend", str(RENEWED_DAYS * 86400), given=certificate)
    except RuntimeError:
        return False
    told = _openssl("x509", "-noout", "-text", given=certificate)
    named = re.findall(r"(?:DNS|IP Address):([^,\s]+)", told)
    return {_alternative(host) for host in hosts} <= {_alternative(name) for name in named}


def _alternative(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _private_file(folder: str, name: str, text: str) -> str:
    path = Path(folder) / name  # the folder is its owner's alone
    path.write_text(text)
    return str(path)


def _openssl(*words: str, given: str = "") -> str:
    try:
        done = subprocess.run(["openssl", *words], input=given, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise SystemExit("openssl is missing: apt-get install openssl, or brew install openssl") from None
    if done.returncode:
        raise RuntimeError(f"openssl {words[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
