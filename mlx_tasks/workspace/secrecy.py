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
    "secret secrets token tokens credential credentials password passwords passwd passphrase pass pwd pw apikey apikeys"
    " sshkey auth login logins private vault wallet cookies htpasswd adminsdk key keys connections".split()
)
_PAIRS = ({"service", "account"}, {"airflow", "variables"})
_PROGRAMS = frozenset(".py .pyi .sh .sql .j2 .html .css .js .md .rst .dockerfile .svg".split())
"""Named by what they do (`tokenizer.py`, `make_secrets.py`): their text alone says whether they hold one. But for those
that are named by whose they are (`secrets_local.py`), or by nothing else (`passwords.py`)."""
_WHOSE = frozenset("local prod production private personal staging".split())
_WHAT = frozenset("credential credentials password passwords passwd apikey apikeys passphrase".split())
_SETTINGS = frozenset("settings config conf env environment".split())
_SECRET_FOLDERS = frozenset("secret secrets credentials private passwords vault".split())
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
    if _KEY_FOLDERS & set(folders) or _SECRET_FOLDERS & {folder.lstrip("._") for folder in folders}:
        return True
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", path)  # AlertToken
    *_, name = apart.lower().split("/")
    words = _words(name)
    if f".{parts[-1]}" in _PROGRAMS:
        words = _words(name.partition(".")[0])
        return bool(words and words <= _WHAT) or bool(words & _WHOSE and words & (_WORDS | _SETTINGS))
    return bool(words & _WORDS) or any(pair <= words for pair in _PAIRS)


def _words(text: str) -> set[str]:
    return {word for word in re.split(r"[^a-z]+", text) if word}


def secrets_in(content: bytes) -> Iterator[Found]:
    """The places of a text that look like a secret; at most one a line. UTF-16 is read too."""
    for number, line in enumerate(content.replace(b"\0", b"").splitlines(), start=1):
        for kind, pattern in _KINDS.items():
            if not all(map(_is_placeholder, pattern.finditer(line))):
                yield Found(number, kind, line.strip())
                break


def _compiled(*alternatives: str) -> re.Pattern[bytes]:
    return re.compile("|".join(alternatives).encode())


_NAMED = (
    r"(?i:secret|token|passw(?:or)?[dt]|passphrase|credential|(?:api|access|secret|private|signing|account|fernet|auth"
    r"|encryption|jwt|session|master|shared|client|webhook)[_ -]?key(?:[_-]?id)?)s?"
)
"""A name's end that says that its value is a secret."""
_SHORT = r"(?<![A-Za-z])(?i:pass|pwd|pw)"
_GIVEN = r"[\"']?\]?(?:\s*[:=]|\s*:\s*[A-Za-z_.]{1,20}(?:\[[a-z |]{1,20}\])?\s*=)\s*"
_QUOTED = r"(?:[A-Za-z]{1,8}\()?\(?[bBrRuUfF]{0,2}(?:\"{2})?(?:\"(?P<double>[^\"\s]{6,})\"|'(?P<single>[^'\s]{6,})')"
_KINDS = {
    "a private key": _compiled(
        r"-----BEGIN [A-Z0-9 ]{0,20}PRIVATE KEY",
        r"AGE-SECRET-KEY-1[0-9A-Z]{20,}",
        r"PuTTY-User-Key-File-[0-9]",
        r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]{20,}",  # in base64, as Kubernetes keeps it
    ),
    "a key of a service": _compiled(
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # Amazon
        r"\bAIza[0-9A-Za-z_-]{35}",  # Google
        r"\bya29\.[0-9A-Za-z_-]{20,}",
        r"\bGOCSPX-[0-9A-Za-z_-]{20,}",
        r"\bgh[pousr]_[A-Za-z0-9]{30,}",
        r"\bgithub_pat_[A-Za-z0-9_]{22,}",
        r"\bgl(?:pat|rt|dt|ptt|cbt|agent)-[A-Za-z0-9_-]{20,}",
        r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",  # Slack
        r"hooks\.slack\.com/services/T[A-Za-z0-9/]{20,}",
        r"discord(?:app)?\.com/api/webhooks/[0-9]{10,}/[A-Za-z0-9_-]{30,}",
        r"(?<![0-9])[0-9]{8,12}:AA[A-Za-z0-9_-]{30,}",  # Telegram
        r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
        r"\bdop_v1_[0-9a-f]{40,}",
        r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{30,}",
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\b[rs]k_live_[A-Za-z0-9]{16,}",
        r"\bhf_[A-Za-z0-9]{30,}",
        r"\bnpm_[A-Za-z0-9]{30,}",
        r"\bpypi-[A-Za-z0-9_-]{30,}",
        r"\blocal-[0-9a-f]{40}\b",  # Weights & Biases
    ),
    "a signed token": _compiled(r"\beyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,}"),
    "a signed address": _compiled(r"[?&;=](?:sig|X-Amz-Signature|X-Goog-Signature)=[A-Za-z0-9%+/=_-]{10,}"),
    "an address with a password": _compiled(
        r"://[^/\s:@'\"]{0,200}:(?P<url>[^/\s@'\"]{3,200})@", r"https?://(?P<account>[A-Za-z0-9_-]{16,200})@"
    ),
    "a secret that is given a value": _compiled(
        rf"(?<!/){_NAMED}{_GIVEN}(?:{_QUOTED}|(?P<plain>[A-Za-z0-9+/=_.~!@#%^&*?-]{{6,}})\s*(?:[,;#}}]|$))"
    ),
    "a short word for a secret that is given a value": _compiled(
        rf"{_SHORT}{_GIVEN}(?:{_QUOTED}|(?P<plain>[A-Za-z0-9+/=_.~!@#%^&*?-]{{6,}})\s*(?:[,;#}}]|$))"
    ),
    "a passphrase": _compiled(
        r"(?i:password|passphrase)[\"']?\]?\s{0,9}[:=]\s{0,9}(?:\"(?P<phrase>[^\"]{6,200})\"|'(?P<phrase_>[^']{6,200})')"
    ),
    "a word for a password": _compiled(
        r"^[\s-]{0,40}[\"']?[A-Za-z0-9_.-]{0,60}(?i:password|passwd|passphrase|secret|token|api_?key)[\"']?:\s{1,9}(?P<word>[^\s#'\"]{6,})\s*$"
    ),
    "a long value of a key": _compiled(rf"(?<![A-Za-z])(?i:key|auth){_GIVEN}[\"'](?P<long>[A-Za-z0-9+/=]{{20,}})[\"']"),
    "a secret beside its name": _compiled(
        rf"{_NAMED}[\"']\]?(?:\s*,\s*|\)\s*or\s*)[\"'](?P<beside>[^\"'\s]{{6,}})[\"']",
        rf"(?i:--{_NAMED}|\bENV [A-Z_]{{0,40}}{_NAMED}|password)[ =]\s{{0,9}}['\"]?"
        r"(?P<spoken>[A-Za-z0-9+/=_.~!@#%^&*?-]{6,})",
        r"(?i:identified by) '(?P<sql>[^']{3,})'",
        rf"<{_NAMED}>(?P<tag>[^<\s]{{4,}})<",
        r"\bcurl\b.{0,200} (?:-u|--user) ['\"]?[^\s:'\"]{1,80}:(?P<curl>[^\s'\"]{3,80})",
    ),
    "a setting with a secret": _compiled(
        r"^\s{0,20}(?:export )?[A-Z0-9_]{0,80}(?:SECRET|TOKEN|PASSWORD|PASSWD|PASS|API_?KEY|ACCESS_?KEY)"
        r"=(?P<setting>\S{6,})$"
    ),
    "a bearer's token": _compiled(
        r"(?i:\b(?:bearer|basic)) (?P<bearer>[A-Za-z0-9+/=_.~-]{16,})",
        r"(?i:authorization)[\"']?\s*[:=]\s*[\"']?(?i:token) (?P<token>[A-Za-z0-9+/=_.~-]{8,})",
    ),
}
"""No pattern begins with a run of any length: a line may be a megabyte long."""
_WRITTEN_ELSEWHERE = re.compile(
    rb"^\$|\$[{(]|\{[\w.!:'\"\[\]]*\}|%\(|^<.*>$|^\[.*\]$|^\*+$|^x+$|\.\.\."
    rb"|\b(example|placeholder|change-?me|your|dummy)",
    re.I,
)
_EXPRESSION = re.compile(rb"[${}<>()\[\]]")
_OWN_NAMES = (b"password", b"pass", b"secret", b"user", b"pwd", b"token", b"xxx")
"""A value that is called what it is: psql's `PASSWORD :'password'`, or `https://user:password@host` on a page."""


_NO_PASSWORD = re.compile(
    rb"(?i:strings?|required|optional|boolean|bytes|unicode|hidden|disabled|enabled|varchar|number|integer)"
    rb"|[A-Z][a-z]+[A-Z]\w*|.*[,;:(|].*|\w+\.\w+.*|/.*|\w*_(?:password|token|secret|key)|[0-9]+"
)
"""A type, an expression, a path or the name of a secret that is kept elsewhere."""


def _is_placeholder(found: re.Match[bytes]) -> bool:
    """Whether the value is a reference, an example or plain words."""
    groups = {name: value for name, value in found.groupdict().items() if value}
    if not groups:
        return False
    ((name, value),) = groups.items()
    if _WRITTEN_ELSEWHERE.search(value) or value.lower() in _OWN_NAMES:
        return True
    if name == "setting" and _EXPRESSION.search(value):
        return True
    if name == "url":
        return False
    mixed = re.search(rb"[0-9]", value) and re.search(rb"[A-Za-z]", value)
    if name == "word":  # YAML's own text; in code, a type, or another name
        return bool(_NO_PASSWORD.fullmatch(value))
    if name == "plain":  # an expression, a name of a setting, a path
        return not mixed or bool(re.search(rb"^[A-Za-z_]\w*\.[A-Za-z_]|^/|^\.", value))
    if name in ("account", "long", "beside", "spoken"):
        return not mixed
    return name in ("double", "single") and not mixed and len(value) < 8
