"""Rank 0's side: starts the other ranks, checks them, closes the ring, and ends all of them when one fails.

Why not `mlx.launch`: it starts every rank itself, and rank 0 is the stage with its record, lock and tracker; it may
ask for a password, knows no time limits, and cannot tell which machine is silent.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_tasks.config_training import Train
from mlx_tasks.errors import BusyError, DataError, ExitCode, OutOfMemoryError, StageError, UnavailableError
from mlx_tasks.hosts import lines
from mlx_tasks.hosts.places import Host
from mlx_tasks.hosts.rendezvous import Listener, dial, join
from mlx_tasks.training.ring import Ring

logger = logging.getLogger(__name__)

SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5")
SSH += ("-o", "ServerAliveCountMax=4")
START_S = 60.0
"""Longest time from a member's start to its first word, beyond train.hosts_timeout_s (seconds)."""
MEET_S = 15.0
_GRACE_S = 10.0
"""From the ring's end, made by us, to this process's, where MLX does not come back from it (seconds)."""
_GOES_ON = "it goes on from its checkpoint when run again"


class Member:
    """One other rank's process, or the ssh that leads to it.

    Attributes:
        heard: when its last sign of life came (`time.monotonic`).
        last_words: its last lines for people.
        reported: the error that it told of itself, or None.
    """

    def __init__(self, rank: int, host: Host, command: Sequence[str], environment: dict[str, str] | None) -> None:
        self.rank, self.host = rank, host
        self.last_words: collections.deque[str] = collections.deque(maxlen=6)
        self.reported: dict[str, Any] | None = None
        self.heard = time.monotonic() + START_S  # no sooner than that is silence meant
        self._messages: collections.deque[dict[str, Any]] = collections.deque()
        self._news = threading.Condition()
        # A session of its own: a terminal's Ctrl-C is for the stage, which then ends its members.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [threading.Thread(target=work, daemon=True) for work in (self._read, self._pass_on_words)]
        for reader in self._readers:
            reader.start()

    @property
    def name(self) -> str:
        """Rank and machine, for people."""
        return f"rank {self.rank} ({self.host.name})"

    def say(self, **message: Any) -> None:
        """Tell the member; one that is gone is noticed by the watch."""
        with contextlib.suppress(OSError):
            self._stdin().write(lines.line(**message))
            self._stdin().flush()

    def beat(self) -> None:
        """A sign of life, where the pipe takes it at once."""
        with contextlib.suppress(OSError, ValueError):
            if select.select([], [self._stdin()], [], 0)[1]:
                os.write(self._stdin().fileno(), lines.beat())

    def hear(self, key: str, deadline: float) -> Any:
        """Its next message of that key.  Raises: StageError once it is gone or time is up."""
        with self._news:
            while True:
                while self._messages:
                    message = self._messages.popleft()
                    if key in message:
                        return message[key]
                left = deadline - time.monotonic()
                if left <= 0 or self.reported is not None or self._process.poll() is not None:
                    break
                self._news.wait(min(left, 0.2))
        raise self.failure() or UnavailableError(
            f"{self.name} did not answer in time ({key}): {self._words() or 'it said nothing'}; see that it is awake"
        )

    def failure(self, patience_s: float = 1.0) -> StageError | None:
        """What ended it, as this stage's own failure; None while it lives."""
        deadline = time.monotonic() + patience_s
        while self._process.poll() is None and self.reported is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        for reader in self._readers if self._process.poll() is not None else ():
            reader.join(1.0)  # what it said last is still in the pipe
        told = self.reported
        if told is not None:
            kinds = {
                ExitCode.OUT_OF_MEMORY: OutOfMemoryError,
                ExitCode.BAD_INPUT: DataError,
                ExitCode.BUSY: BusyError,
            }
            return kinds.get(told["code"], UnavailableError)(f"{self.name}: {told['error']}")
        code = self._process.poll()
        if code == -signal.SIGSEGV:  # how MLX's CPU build answers an allocation that the system refuses
            return OutOfMemoryError(f"{self.name} ended {_ending(code)}: out of memory")
        return UnavailableError(f"{self.name} ended {_ending(code)}: {self._words() or 'no words'}")

    def end(self, seconds: float) -> None:
        """Close its stdin, which it ends at, and kill what does not: a member here, or the ssh to one."""
        with contextlib.suppress(OSError):
            self._stdin().close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _stdin(self) -> Any:
        assert self._process.stdin is not None
        return self._process.stdin

    def _words(self) -> str:
        return " / ".join(self.last_words)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            self.heard = time.monotonic()
            message = lines.message(raw.decode("utf-8", errors="replace"))
            if message is None:
                continue
            with self._news:
                if "error" in message:
                    self.reported = message
                self._messages.append(message)
                self._news.notify_all()

    def _pass_on_words(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            text = raw.decode("utf-8", errors="replace").rstrip()
            if text:
                self.last_words.append(text)
                logger.info("%s: %s", self.name, text)


class Members:
    """All other ranks of a training, for the block's length.

    Attributes:
        ring: the ring to them, closed and tried.
    """

    ring: Ring

    def __init__(
        self, hosts: Sequence[Host], train: Train, job: dict[str, Any], say: Callable[[str], None] = logger.info
    ) -> None:
        """hosts: by rank, this process's first. job: what a member builds its learner from (hosts/member.py)."""
        self._hosts, self._train, self._job, self._say = hosts, train, job, say
        self._members: list[Member] = []
        self._failure: StageError | None = None
        self._ending = threading.Event()

    def __enter__(self) -> Members:
        try:
            for rank, host in enumerate(self._hosts[1:], 1):
                self._members.append(Member(rank, host, *_command(host, self._train)))
            self.ring = self._gather()
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._ending.set()
            with contextlib.suppress(StageError):
                self.ring.close()
        self._end(_GRACE_S if kind is None else 0.0)

    def _gather(self) -> Ring:
        """Check every member, try every connection, then close MLX's ring."""
        train, deadline = self._train, time.monotonic() + START_S + self._train.hosts_timeout_s
        threading.Thread(target=self._beat_and_watch, daemon=True).start()
        for member in self._members:
            self._check(member, member.hear("hello", deadline))
        listener = Listener(self._hosts[0].address, train.hosts_port)
        try:
            for member in self._members:
                place = {"address": member.host.address, "port": train.hosts_port, "here": member.host.here}
                who = f"rank {member.rank} of a training on {socket.gethostname()}"
                member.say(job={**self._job, **place, "who": who, "timeout_s": train.hosts_timeout_s})
            ports = [listener.port, *(member.hear("port", deadline) for member in self._members)]
            addresses = [f"{host.address}:{port}" for host, port in zip(self._hosts, ports, strict=True)]
            token = secrets.token_hex(16)
            self._meet(listener, addresses, token)
        finally:
            listener.close()
        for member in self._members:
            member.say(go=True)
        ring = self.ring = Ring(*join(addresses, 0), self._explain)
        if not ring.agree(token):
            raise UnavailableError(f"the ring of {', '.join(addresses)} has processes of another training in it")
        self._say(f"{len(self._hosts)} ranks: {', '.join(host.name for host in self._hosts)}")
        return ring

    def _check(self, member: Member, hello: dict[str, Any]) -> None:
        own = {"code": lines.code_digest(), "mlx": version("mlx")}
        names = {"code": "another version of this code", "mlx": "another version of MLX"}
        for key, value in own.items():
            if hello[key] != value:
                raise DataError(
                    f"{member.name} has {names[key]} in {self._where(member.host)}: {hello[key]}, and rank 0 has "
                    f"{value}: bring both to one commit and run `make setup` there"
                )

    def _where(self, host: Host) -> str:
        return "this checkout" if host.here else self._train.hosts_folder

    def _meet(self, listener: Listener, addresses: list[str], token: str) -> None:
        """Every rank connects to the next one by a plain socket; says which pair could not."""
        for member in self._members:
            member.say(meet={"addresses": addresses, "rank": member.rank, "token": token, "seconds": MEET_S})
        address, _, port = addresses[1].rpartition(":")
        failed = [dial(address, int(port), token, MEET_S)]
        came = [listener.accept(token, MEET_S)]
        for member in self._members:
            met = member.hear("met", time.monotonic() + 3 * MEET_S)
            failed.append(met["to"])
            came.append(met["from"])
        for rank, reason in enumerate(failed):
            following = (rank + 1) % len(self._hosts)
            if reason is None and came[following]:
                continue
            pair = f"rank {rank} ({self._hosts[rank].name}) to rank {following} ({self._hosts[following].name})"
            raise UnavailableError(
                f"no connection from {pair}: {reason or addresses[following] + ' was taken by somebody else'}; open "
                f"ports {self._train.hosts_port} and following, or write NAME=ADDRESS in train.hosts"
            )

    def _explain(self, reason: str) -> StageError:
        """The failure behind a broken ring: the machine's own, where one is found within a moment."""
        if self._failure is None:
            found = [failure for member in self._members if (failure := member.failure(0.5)) is not None]
            told = next((failure for failure in found if not isinstance(failure, UnavailableError)), None)
            self._failure = told or (found[0] if found else UnavailableError(f"the ring broke: {reason}"))
        return type(self._failure)(f"{self._failure}; {_GOES_ON}")

    def _beat_and_watch(self) -> None:
        """Signs of life to all; a member that ended, fell silent or lets the others wait breaks the ring."""
        last = time.monotonic()
        while not self._ending.wait(lines.BEAT_S):
            late = time.monotonic() - last > lines.PAUSE_S
            last = time.monotonic()
            for member in self._members:
                member.beat()
                if late:  # this process stood still, and heard nobody for that reason
                    member.heard = max(member.heard, last)
            failure = next(filter(None, map(self._trouble, self._members)), None) or self._stuck()
            if failure is None:
                continue
            self._failure = self._failure or failure
            self._break()
            return

    def _trouble(self, member: Member) -> StageError | None:
        silent = time.monotonic() - member.heard
        if silent > self._train.hosts_timeout_s:
            return UnavailableError(
                f"{member.name} has been silent for {silent:.0f} s (train.hosts_timeout_s): see that it is awake and "
                "reachable"
            )
        return member.failure(0.0)

    def _stuck(self) -> StageError | None:
        since = self.ring.talking_since if hasattr(self, "ring") else None
        if since is None or time.monotonic() - since <= self._train.hosts_timeout_s:
            return None
        return UnavailableError(
            f"a step's exchange took more than {self._train.hosts_timeout_s:.0f} s: raise train.hosts_timeout_s if a "
            "machine needs so long for its share"
        )

    def _break(self) -> None:
        """End all members and the ring, so that whoever waits in it comes back; this process ends if it does not."""
        for member in self._members:
            member.kill()
        for descriptor in self.ring.sockets if hasattr(self, "ring") else ():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as end:
                end.shutdown(socket.SHUT_RDWR)
        broken = time.monotonic()
        while not self._ending.wait(0.2):
            since = self.ring.talking_since if hasattr(self, "ring") else None
            if since is not None and time.monotonic() - max(since, broken) > _GRACE_S:
                print(f"ended: {self._failure}; {_GOES_ON}", file=sys.stderr, flush=True)
                os._exit(ExitCode.UNAVAILABLE)

    def _end(self, seconds: float) -> None:
        self._ending.set()
        for member in self._members:
            member.end(seconds)


def _command(host: Host, train: Train) -> tuple[list[str], dict[str, str] | None]:
    """(command, environment) of a member's process."""
    module = ["-m", "mlx_tasks.hosts.member"]
    if host.here:
        package = Path(__file__).resolve().parents[2]
        return [sys.executable, *module], {**os.environ, "PYTHONPATH": str(package)}
    far = f"cd {shlex.quote(train.hosts_folder)} && exec {shlex.join([train.hosts_python, *module])}"
    return [*SSH, host.name, far], None


def _ending(code: int | None) -> str:
    if code is None:
        return "its part"
    return f"by signal {-code}" if code < 0 else f"with code {code}"
