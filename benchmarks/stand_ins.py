"""Images where no registry of images is reached: Debian's packages under the tags that the control plane names.

A tag that the engine holds already stays as it is, so where the real image was pulled it is the real one. The two
bases are debootstrap trees (Debian 12 for Python 3.11, Debian 13 for the servers), imported; what is built on them
stands in benchmarks/stand_ins. Needs root, an engine, and Debian's `debootstrap`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = ROOT / "benchmarks" / "stand_ins"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""What this machine trusts; images that install from PyPI must trust the same."""
BASES = {
    "stand-in/debian:12": ("bookworm", "ca-certificates,curl,dumb-init,python3,python3-pip,python3-venv"),
    "stand-in/debian:13": ("trixie", "ca-certificates"),
}
IMAGES = {
    "python": "python",
    "apache/airflow": "airflow",
    "postgres": "postgres",
    "chrislusf/seaweedfs": "swift",
    "prom/prometheus": "prometheus",
    "prom/alertmanager": "alertmanager",
    "grafana/grafana": "grafana",
    "rclone/rclone": "rclone",
    "nginx": "nginx",
}
"""Repository of an image -> the Dockerfile of its stand-in."""


def wanted() -> list[str]:
    """The tags of others that docker-compose.yaml and our Dockerfiles name."""
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"].values()
    theirs = {service["image"] for service in services if "build" not in service}
    files = {
        ROOT / service["build"]["context"] / service["build"]["dockerfile"]
        for service in services
        if "build" in service
    }
    bases = {re.search(r"^FROM (\S+)", path.read_text(), re.M)[1] for path in files}
    return sorted(theirs | bases, key=lambda tag: not tag.startswith("python:"))  # Airflow's is built on Python's


def present(tag: str) -> bool:
    """Whether the engine holds this image."""
    return subprocess.run(["docker", "image", "inspect", tag], capture_output=True).returncode == 0


def make(say) -> list[str]:
    """Every wanted image that is missing; the tags made.  Raises: CalledProcessError where a build fails."""
    made = []
    for tag in wanted():
        if present(tag):
            continue
        began = time.monotonic()
        for base in BASES:
            if not present(base):
                _import(base)
        _build(tag)
        made.append(tag)
        say(f"stand-in for {tag}: {time.monotonic() - began:.0f} s")
    return made


def _import(tag: str) -> None:
    suite, packages = BASES[tag]
    if shutil.which("debootstrap") is None:
        raise SystemExit("debootstrap is missing: apt-get install debootstrap")
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        tree = Path(folder) / "tree"
        _run("debootstrap", "--variant=minbase", f"--include={packages}", suite, str(tree))
        shutil.copy(AUTHORITIES, tree / AUTHORITIES.relative_to("/"))
        shutil.rmtree(tree / "var/cache/apt/archives")
        (tree / "var/cache/apt/archives/partial").mkdir(parents=True)
        tar = subprocess.Popen(["tar", "-C", str(tree), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", tag], stdin=tar.stdout, check=True, capture_output=True)


def _build(tag: str) -> None:
    name, _, version = tag.partition(":")
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        context = shutil.copytree(DOCKERFILES, Path(folder) / "context")
        locked = re.findall(r"^([\w.-]+==[^\\\n]+)", (ROOT / "requirements.lock").read_text(), re.M)
        (context / "constraints.txt").write_text("\n".join(locked) + "\n")
        dockerfile = f"{IMAGES[name]}.Dockerfile"
        options = ["--build-arg", f"AIRFLOW_VERSION={version.partition('-')[0]}"] if name == "apache/airflow" else []
        more = ["-t", "stand-in/python:3.11"] if name == "python" else []
        _run("docker", "build", "-t", tag, *more, "-f", str(context / dockerfile), *options, str(context))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )
