"""Rings for tests: the stage with its other ranks, real processes of a small ring, and a real sshd on loopback."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from debian import program
from ports import free_port
from training_world import workspace

import mlx_tasks
from mlx_tasks.files import read_json

MEMBER = "mlx_tasks.hosts.member"
WEIGHTS = "work/teacher/unet/diffusion_pytorch_model.safetensors"


def ring_workspace(root: Path, ranks: int, **train) -> Path:
    """A workspace whose train stage takes that many processes of this machine."""
    hosts = {"hosts": ["127.0.0.1"] * ranks if ranks > 1 else [], "hosts_port": free_port(64)}
    return workspace(root, train={**hosts, **train})


def start(root: Path, **environment: str) -> subprocess.Popen:
    """The train stage as the CLI runs it."""
    env = os.environ | {"MLX_TASKS_THREADS": "1", "MLX_TASKS_LOCKS": str(root / ".locks"), **environment}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlx_tasks", "train", "--root", str(root)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0, seconds: float = 240) -> str:
    """Its output, once it has ended with that code."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def wait_for(condition, seconds: float = 120.0, process: subprocess.Popen | None = None) -> float:
    """Seconds until the condition held."""
    begin = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() - begin < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - begin


def members(process: subprocess.Popen) -> list[psutil.Process]:
    """The other ranks of a stage that runs here, by rank."""
    found = [p for p in psutil.Process(process.pid).children() if p.cmdline()[-1:] == [MEMBER]]
    return sorted(found, key=lambda p: p.pid)


def step_of(root: Path) -> int:
    """Step of the newest checkpoint; 0 without one."""
    steps = [int(p.name.removeprefix("step_")) for p in (root / ".checkpoints/train").glob("step_*[0-9]")]
    return max(steps, default=0)


def told(root: Path) -> str:
    """The message of the stage's record."""
    return read_json(root / ".run/stages/train.json")["message"]


def alive(process: psutil.Process) -> bool:
    """Whether it still runs."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def small_ring(case: str, ranks: int, folder: Path) -> None:
    """Run tests/ring_rank.py's case with that many ranks; what they found lies in the folder."""
    folder.mkdir()
    first = free_port(ranks)
    ports = [str(first + rank) for rank in range(ranks)]
    script = Path(__file__).parent / "ring_rank.py"
    started = [
        subprocess.Popen(
            [sys.executable, str(script), case, str(rank), str(folder), *ports],
            env=os.environ | {"PYTHONPATH": str(script.parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in started:
            finish(process)
    finally:
        for process in started:
            process.kill()


class Sshd:
    """OpenSSH's server on a port of loopback for this user, with a key of its own, for the block's length.

    Attributes:
        locks: folder of the far machine's locks.
        path: PATH whose `ssh` knows the hosts "far" and "lost" (nobody listens), and no other key.
    """

    def __init__(self, folder: Path, locks: Path) -> None:
        self.folder, self.locks, self.port = folder, locks, free_port(64)
        sshd, keygen, ssh = (
            program("sshd", "openssh-server"),
            program("ssh-keygen", "openssh-client"),
            program("ssh", "openssh-client"),
        )
        folder.mkdir(mode=0o700)
        for name in ("host", "user"):
            subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copyfile(folder / "user.pub", folder / "authorized")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\nLogLevel ERROR\n"
            f"SetEnv MLX_TASKS_THREADS=1 MLX_TASKS_LOCKS={locks}\n"
        )
        user = pwd.getpwuid(os.geteuid()).pw_name
        (folder / "config").write_text(
            f"Host far\n  HostName 127.0.0.1\n  Port {self.port}\nHost lost\n  HostName 127.0.0.1\n  Port 1\n"
            f"Host *\n  User {user}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking accept-new\n"
        )
        (folder / "bin").mkdir()
        wrapper = folder / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {ssh} -F {folder}/config "$@"\n')
        wrapper.chmod(0o755)
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
        self._process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")])

    def __enter__(self) -> "Sshd":
        def up() -> bool:
            assert self._process.poll() is None, "sshd ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        wait_for(up, 10)
        return self

    def __exit__(self, *rest: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)

    def far_members(self) -> list[psutil.Process]:
        """Members that this server started."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        return [p for p in below if alive(p) and p.cmdline()[-1:] == [MEMBER]]


def checkout(folder: Path) -> Path:
    """A folder as another machine's checkout: this code as it stands."""
    shutil.copytree(Path(mlx_tasks.__file__).parent, folder / "mlx_tasks", ignore=shutil.ignore_patterns("__pycache__"))
    return folder
