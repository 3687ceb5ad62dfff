#!/bin/sh
# Find a Python 3.11 and let it make .venv (install.py), or say in one line what is missing and what to type for it.
# PYTHON=/path/to/python3.11 chooses one. Where there is none and uv is installed, uv brings one.
set -u
root=$(CDPATH= cd "$(dirname "$0")/../.." && pwd)

# The interpreter behind a name, if it is a whole 3.11 (Debian splits venv off). Of an environment: what it was made from,
# since .venv cannot make itself again.
whole() {
    "$1" -c 'import sys, venv, ensurepip
if sys.version_info[:2] == (3, 11): print(getattr(sys, "_base_executable", None) or sys.executable)' 2>/dev/null
}

mac() { [ "$(uname -s)" = Darwin ]; }

# macOS has a python3 and a git that only open a dialog until Apple's tools are installed.
apple_stub() { mac && case "$1" in /usr/bin/*) ! xcode-select -p >/dev/null 2>&1 ;; *) false ;; esac; }

uv_program() {
    for one in "$(command -v uv)" "${HOME:-/nonexistent}/.local/bin/uv" "${HOME:-/nonexistent}/.cargo/bin/uv" \
        /opt/homebrew/bin/uv /usr/local/bin/uv; do
        if [ -n "$one" ] && [ -x "$one" ]; then echo "$one"; return; fi
    done
}

find_python() {
    for name in python3.11 python3 python; do
        path=$(command -v "$name") || continue
        if ! apple_stub "$path" && found=$(whole "$path") && [ -n "$found" ]; then return; fi
    done
    for path in "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/3.11*/bin/python3.11 \
        /opt/homebrew/bin/python3.11 /opt/homebrew/opt/python@3.11/bin/python3.11 \
        /usr/local/bin/python3.11 /usr/local/opt/python@3.11/bin/python3.11 \
        /Library/Frameworks/Python.framework/Versions/3.11/bin/python3.11; do
        if [ -x "$path" ] && found=$(whole "$path") && [ -n "$found" ]; then return; fi
    done
    uv=$(uv_program)
    if [ -n "$uv" ]; then
        if path=$("$uv" python find --system 3.11 2>/dev/null) && found=$(whole "$path") && [ -n "$found" ]; then return; fi
        echo "setup: no Python 3.11 here: uv brings one"
        if "$uv" python install 3.11 && path=$("$uv" python find --system 3.11) && found=$(whole "$path"); then return; fi
    fi
    found=""
}

missing="" apt="" brew=""
found=""
if [ -n "${PYTHON:-}" ]; then
    found=$(whole "$PYTHON") || found=""
    if [ -z "$found" ]; then
        echo "setup: PYTHON=$PYTHON is no Python 3.11 with venv: give the path of one, or leave PYTHON out" >&2
        exit 1
    fi
else
    find_python
fi
if [ -z "$found" ]; then
    missing="Python 3.11" apt="python3.11 python3.11-venv" brew="python@3.11"
fi
git=$(command -v git) || git=""
if [ -z "$git" ] || apple_stub "$git"; then
    missing="${missing:+$missing, }git" apt="${apt:+$apt }git" brew="${brew:+$brew }git"
fi
if ! mac && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    missing="${missing:+$missing, }a C++ compiler" apt="${apt:+$apt }g++"
fi
if [ -n "$missing" ]; then
    told="setup: missing: $missing; type"
    if mac; then
        told="$told: brew install $brew"
    else
        told="$told (Debian 12): sudo apt-get install $apt"
    fi
    [ -n "$found" ] || told="$told; or install uv (docs.astral.sh/uv), which brings Python 3.11"
    echo "$told; then again: make setup" >&2
    exit 1
fi
exec "$found" "$root/mlx_tasks/stack/install.py"
