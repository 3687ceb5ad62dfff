"""Looking at many images: the same in processes as here, in order, and no process outlives its parent."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from functools import partial

import numpy as np
import psutil
import pytest
from PIL import Image

from mlx_tasks.data import inspection
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.inspection import inspect_all, inspect_one
from mlx_tasks.data.listing import Candidate
from mlx_tasks.data.quarantine import Refused, write_quarantine
from mlx_tasks.data.told import Told

RULES = Rules(8, 1_000_000, 3.0)
LOOKS = {"rules": RULES, "resolutions": (8,), "channels": "auto"}


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> list[Candidate]:
    """Ninety images, every seventh of which is a text."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(90):
        file = folder / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        if number % 7 == 3:
            file.write_text("words")
        found.append(Candidate(path=file.name, file=file))
    return found


def test_processes_give_what_one_gives_in_the_same_order(candidates, monkeypatch):
    alone = list(inspect_all(candidates, RULES, (8, 16), "auto", 1))
    monkeypatch.setattr(inspection, "FEWEST_FOR_PROCESSES", 0)
    together = list(inspect_all(candidates, RULES, (8, 16), "auto", 2))
    assert [bool(seen.reason) for seen in alone] == [number % 7 == 3 for number in range(90)]
    for one, other in zip(alone, together, strict=True):
        first, second = asdict(one), asdict(other)
        np.testing.assert_equal(first, second)


def test_grey_needs_one_channel_and_colour_three():
    grey = Candidate(path="g", pixels=np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8))
    colour = Candidate(path="c", pixels=np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    shapes = {
        channels: [seen.squares[8].shape[-1] for seen in inspect_all([grey, colour], RULES, (8,), channels, 1)]
        for channels in ("auto", "grey", "rgb")
    }
    assert shapes == {"auto": [1, 3], "grey": [1, 1], "rgb": [1, 3]}


@pytest.mark.slow
def test_processes_stop_when_their_parent_is_killed(tmp_path):
    """The parent gets no chance to say goodbye (SIGKILL)."""
    script = tmp_path / "parent.py"
    script.write_text(
        """
import time
import numpy as np
from mlx_tasks.data import inspection
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.listing import Candidate

if __name__ == "__main__":
    inspection.FEWEST_FOR_PROCESSES = 0
    many = [Candidate(path=str(i), pixels=np.zeros((9, 9), np.uint8)) for i in range(400)]
    looks = inspection.inspect_all(many, Rules(8, 100, 3.0), (8,), "auto", 2)
    next(looks)
    print("started", flush=True)
    time.sleep(60)
"""
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline().strip() == "started"
    children = [child for child in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(children) >= 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_process_killed_from_outside_loses_no_image(candidates, monkeypatch):
    """As the system does when memory runs out: each image in hand is tried again, and none is at fault."""
    monkeypatch.setattr(inspection, "FEWEST_FOR_PROCESSES", 0)
    alone = [seen.pixels_sha256 for seen in map(partial(inspect_one, **LOOKS), candidates)]
    looks = inspect_all(candidates, RULES, (8,), "auto", 2)
    found = [next(looks)]
    for child in psutil.Process().children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    assert [seen.pixels_sha256 for seen in [*found, *looks]] == alone


DEADLY = """
import os, signal, time
from PIL import ImageFile

whole = ImageFile.ImageFile.load

def load(self):
    if self.fp is None:  # loaded already
        return whole(self)
    place = self.fp.tell()
    self.fp.seek(-8, 2)
    word = self.fp.read(8)
    self.fp.seek(place)
    if word == b"SEGFAULT":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == b"ABORTING":
        os.abort()
    return whole(self)

ImageFile.ImageFile.load = load
"""


def test_a_decoder_that_crashes_loses_its_own_file_alone(tmp_path, monkeypatch):
    """Files that end in a word on which the decoder crashes, among sound ones: the first, and the last two."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = {0: b"SEGFAULT", 18: b"ABORTING", 19: b"SEGFAULT"}
    many = []
    for number in range(20):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file)
        with file.open("ab") as end:
            end.write(words.get(number, b"harmless"))
        many.append(Candidate(path=file.name, file=file))
    found = list(inspect_all(many, RULES, (8,), "auto", 1))
    assert {row: seen.reason for row, seen in enumerate(found) if seen.reason} == dict.fromkeys(words, "corrupt")
    assert [found[row].detail.split()[-1] for row in words] == ["SIGSEGV", "SIGABRT", "SIGSEGV"]
    refused = [Refused(many[row], "too_small", "", 9, 9) for row in (0, 1)]
    write_quarantine(tmp_path / "quarantine", refused, 20, RULES, Told())
    shown = [Image.open(tmp_path / "quarantine" / "thumbnails" / f"{n:06}.png").mode for n in (0, 1)]
    assert shown == ["L", "RGB"]  # the grey field, and the picture


def test_a_pipe_a_socket_and_a_huge_file_are_refused_and_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "nothing.png").symlink_to(tmp_path / "gone")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(40 << 30)
    short = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # a socket's path may have a hundred characters
    short.bind("socket.png")
    names = ["pipe.png", "folder.png", "device.png", "socket.png", "nothing.png", "sparse.png"]
    found = inspect_all([Candidate(name, tmp_path / name) for name in names], RULES, (8,), "auto", 1)
    told = [(seen.reason, seen.detail) for seen in found]
    short.close()
    assert told[:3] == [
        ("unreadable", "a named pipe, not a regular file"),
        ("unreadable", "a folder, not a regular file"),
        ("unreadable", "a device, not a regular file"),
    ]
    assert [reason for reason, _ in told[3:]] == ["unreadable", "missing_file", "bomb"]
    assert told[5][1] == f"a file of {40 << 30} bytes, above the {1 << 30} that are read"
