"""What looks like a secret, by its name and by its text: such a file is never taken into a run's commit.

A name is a guess, and so is a text; both guess on the safe side. Whoever knows better commits the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

_KEY_SUFFIXES = frozenset(
    ".env .envrc .key .pem .p12 .pfx .p8 .jks .keystore .kdbx .ppk .pgp .gpg .ovpn .tfvars .tfstate .kubeconfig".split()
)
_KEY_NAMES = re.compile(
    r"\.env|\.envrc|[._]netrc|\.pgpass|\.npmrc|\.pypirc|\.?htpasswd|\.git-credentials|\.boto|\.s3cfg|\.dockercfg"
    r"|\.my\.cnf|kubeconfig|id_(rsa|dsa|ecdsa|ed25519)(_sk)?"
)
_KEY_FOLDERS = frozenset({".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure"})
_WORDS = frozenset(
    "secret secrets token tokens credential credentials password passwords passwd apikey apikeys".split()
)
_PROGRAMS = frozenset(".py .pyi .sh .sql .j2 .html .css .js .md .rst .dockerfile .svg".split())
"""Named by what they do (`tokenizer.py`, `make_secrets.py`): their text alone says whether they hold one."""
_PATTERNS = frozenset({"example", "sample", "template", "dist"})


class Found(NamedTuple):
    """A place in a text that looks like a secret: its line (from 1), what it looks like, and the bytes themselves."""

    line: int
    kind: str
    text: bytes


def secret_name(path: str) -> bool:
    """Whether a file's path (with `/`) is that of a key, a password or a file of settings that holds some."""
    *folders, name = PurePosixPath(path.lower()).parts
    parts = name.split(".")
    if parts[-1] in _PATTERNS and len(parts) > 1:  # .env.example
        return False
    suffixes = {f".{part}" for part in parts[1:]}  # worker.env.bak too
    if suffixes & _KEY_SUFFIXES or any(_KEY_NAMES.fullmatch(".".join(parts[:end])) for end in range(1, len(parts) + 1)):
        return True
    if _KEY_FOLDERS & set(folders):
        return True
    if f".{parts[-1]}" in _PROGRAMS:
        return False
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", path).lower()  # AlertToken
    words = set(re.split(r"[^a-z]+", apart))
    return bool(words & _WORDS or {"api", "key"} <= words)


def secrets_in(content: bytes) -> Iterator[Found]:
    """The places of a text that look like a secret; at most one a line. UTF-16 is read too."""
    for number, line in enumerate(content.replace(b"\0", b"").splitlines(), start=1):
        for kind, pattern in _KINDS.items():
            if (found := pattern.search(line)) and not _is_placeholder(found):
                yield Found(number, kind, line.strip())
                break


def _compiled(*alternatives: str) -> re.Pattern[bytes]:
    return re.compile("|".join(alternatives).encode())


_KINDS = {
    "a private key": _compiled(r"-----BEGIN [A-Z0-9 ]{0,20}PRIVATE KEY", r"AGE-SECRET-KEY-1[0-9A-Z]{20,}"),
    "a key of a service": _compiled(
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # Amazon
        r"\bAIza[0-9A-Za-z_-]{35}",  # Google
        r"\bgh[pousr]_[A-Za-z0-9]{30,}",
        r"\bgithub_pat_[A-Za-z0-9_]{22,}",
        r"\bglpat-[A-Za-z0-9_-]{20,}",
        r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",  # Slack
        r"hooks\.slack\.com/services/T[A-Za-z0-9/]{20,}",
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\b[rs]k_live_[A-Za-z0-9]{16,}",
        r"\bhf_[A-Za-z0-9]{30,}",
        r"\bnpm_[A-Za-z0-9]{30,}",
        r"\bpypi-[A-Za-z0-9_-]{30,}",
    ),
    "a signed token": _compiled(r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,}"),
    "an address with a password": _compiled(r"://[^/\s:@'\"]{0,200}:(?P<url>[^/\s@'\"]{3,200})@"),
    "a secret that is given a value": _compiled(
        r"(?<!/)(?i:secret|token|password|passwd|passphrase|credential|(?:api|access|secret|private|signing|account|fernet|auth)"
        r"[_-]?key(?:[_-]?id)?)s?[\"']?(?:\s*[:=]|\s*:\s*str\s*=)\s*[bru]?"
        r"(?:\"(?P<double>[^\"\s]{6,})\"|'(?P<single>[^'\s]{6,})'"
        r"|(?P<plain>[A-Za-z0-9+/=_.~!@#%^&*?-]{6,})\s*(?:[,;#]|$))"
    ),
    "a setting with a secret": _compiled(
        r"^\s{0,20}(?:export )?[A-Z0-9_]{0,80}(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)"
        r"=(?P<setting>\S{6,})$"
    ),
    "a bearer's token": _compiled(r"(?i:\b(?:bearer|basic)) (?P<bearer>[A-Za-z0-9+/=_.~-]{16,})"),
}
"""No pattern begins with a run of any length: a line may be a megabyte long."""
_WRITTEN_ELSEWHERE = re.compile(
    rb"[${}<>()\[\]]|%\(|^\*+$|^x+$|\.\.\.|\b(example|placeholder|change-?me|your|dummy)", re.I
)
_OWN_NAMES = (b"password", b"pass", b"secret", b"user", b"pwd", b"token", b"xxx")
"""A value that is called what it is: psql's `PASSWORD :'password'`, or `https://user:password@host` on a page."""


def _is_placeholder(found: re.Match[bytes]) -> bool:
    """Whether the value is a reference, an example or plain words."""
    groups = {name: value for name, value in found.groupdict().items() if value}
    if not groups:
        return False
    ((name, value),) = groups.items()
    if _WRITTEN_ELSEWHERE.search(value) or value.lower() in _OWN_NAMES:
        return True
    if name == "url":
        return False
    mixed = re.search(rb"[0-9]", value) and re.search(rb"[A-Za-z]", value)
    if name == "plain":  # an expression, a name of a setting, a path
        return not mixed or bool(re.search(rb"^[A-Za-z_]\w*\.[A-Za-z_]|^/|^\.", value))
    return name in ("double", "single") and not mixed and len(value) < 8
