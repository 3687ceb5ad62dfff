"""Programs from Debian that tests drive: found, or installed where this process may install."""

import os
import shutil
import subprocess

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
