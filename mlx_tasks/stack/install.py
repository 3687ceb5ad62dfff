"""Make `.venv` from the lock file. Run by the Python 3.11 that setup.sh finds beside git and a compiler (stdlib only).

All is installed by uv, with hashes, exactly as locked; on Linux torch takes a step of its own, by pip: pip's own
configuration may offer a CPU wheel, whose hash a lock made elsewhere cannot know; where none is offered, the registry's
build comes with what it needs. A stamp with the lock's hash is written last, so an environment without one is half
made and is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ \\;]+)")


def main() -> int:
    """Install if need be; 0 when `.venv` is what the lock says."""
    if sys.version_info[:2] != (3, 11):
        return _fail(
            f"Python 3.11 is needed, this is {sys.version.split()[0]}: run `make setup PYTHON=/path/to/python3.11`"
        )
    with _only_one():
        wanted = _wanted()
        if _installed() == wanted:
            return 0
        started = time.monotonic()
        if VENV.exists():
            print("setup: .venv is half made or older than the lock: making it again", flush=True)
        try:
            _install()
        except subprocess.CalledProcessError as error:
            return _fail(
                f"`{' '.join(map(str, error.cmd[:6]))} ...` failed with {error.returncode}; run `make setup` again"
            )
        STAMP.write_text(json.dumps(wanted))
        print(f"setup: .venv is ready ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


def _install() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks = list(_blocks(lock))
    python = VENV / "bin" / "python"
    _say("creating .venv")
    _run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    with tempfile.TemporaryDirectory() as folder:
        uv_lock, rest_lock, pins = (Path(folder) / name for name in ("uv.lock", "rest.lock", "pins.txt"))
        uv_lock.write_text("".join(text for name, text in blocks if name == "uv"))
        by_pip = {"torch"} if sys.platform != "darwin" else set()  # macOS has one build, and the lock knows its hash
        rest_lock.write_text("".join(text for name, text in blocks if name not in by_pip))
        pins.write_text("".join(_pin(text) for _, text in blocks))
        _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes", "-r", uv_lock])
        uv = [VENV / "bin" / "uv", "pip", "install", "-q", "--python", python]
        # First, while there is nothing for pip to compare with: it would miss the torchvision that lpips names, which
        # is left out on purpose (include/overrides.txt).
        for torch in (_pin(text).split(";")[0].strip() for name, text in blocks if name in by_pip):
            _say("installing torch")
            _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", torch, "-c", pins])
        _say(f"installing {len(blocks)} locked packages")
        # Every stage is a fresh process: compiling its imports each time would double what a node costs.
        _run([*uv, "--compile-bytecode", "--require-hashes", "--no-deps", "-r", rest_lock])
        _say("installing this project")
        _run([*uv, "--no-deps", "-e", str(ROOT)])
    _say("checking that torch and MLX import")
    check = "import torch, mlx.core as mx; mx.eval(mx.ones(1) + 1)"
    _run([python, "-c", check])


def _blocks(lock: str) -> Iterator[tuple[str, str]]:
    """(package, its lines with hashes) of each requirement of a lock."""
    name, lines = "", []
    for line in lock.splitlines(keepends=True):
        found = _REQUIREMENT.match(line)
        if found:
            if name:
                yield name, "".join(lines)
            name, lines = found["name"].lower(), []
        if name:
            lines.append(line)
    if name:
        yield name, "".join(lines)


def _pin(block: str) -> str:
    return block.splitlines()[0].rstrip("\\ ").rstrip() + "\n"


def _wanted() -> dict[str, str]:
    digest = hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return {"lock": digest.hexdigest(), "root": str(ROOT), "python": sys.version.split()[0]}


def _installed() -> dict[str, str] | None:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold the installation's lock; say so when another `make` holds it."""
    state = ROOT / ".state"
    state.mkdir(mode=0o700, exist_ok=True)
    with open(state / "install.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another make is installing here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str | os.PathLike[str]]) -> None:
    subprocess.run([os.fspath(part) for part in command], check=True, cwd=ROOT)


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def _fail(text: str) -> int:
    print(f"setup: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted: `make setup` makes it again"))
