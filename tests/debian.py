"""Programs from Debian, and libraries that only a server's image holds: found, or installed where that is allowed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def program(name: str, package: str) -> str:
    """The program's path; its package is installed where it is missing and root may. Elsewhere the test is skipped."""
    found = shutil.which(name)
    if found:
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        for command in (["apt-get", "update", "-qq"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=540)
        found = shutil.which(name)
        if found:
            return found
        pytest.fail(f"{package} could not be installed: {done.stderr[-500:]}")
    pytest.skip(f"needs {name}: install Debian's package {package}")


def library(module: str, folder: Path, *requirements: str) -> str:
    """A folder to look for the module in: empty where this environment has it, else one where it is installed."""
    if importlib.util.find_spec(module):
        return ""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    if done.returncode:
        pytest.skip(f"needs {module}: {done.stderr[-300:]}")
    return str(folder)
