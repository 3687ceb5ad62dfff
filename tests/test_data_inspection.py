"""Looking at many images: the same in processes as here, in order, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import psutil
import pytest
from PIL import Image

from mlx_tasks.data import inspection
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.inspection import inspect_all
from mlx_tasks.data.listing import Candidate

RULES = Rules(8, 1_000_000, 3.0)


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


def test_a_killed_process_is_an_error_and_not_a_hang(candidates, monkeypatch):
    from mlx_tasks.errors import OutOfMemoryError

    monkeypatch.setattr(inspection, "FEWEST_FOR_PROCESSES", 0)
    monkeypatch.setattr(inspection, "_AHEAD", 2)
    looks = inspect_all(candidates, RULES, (8,), "auto", 2)
    next(looks)
    for child in psutil.Process().children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    started = time.monotonic()
    with pytest.raises(OutOfMemoryError, match="was killed"):
        list(looks)
    assert time.monotonic() - started < 30
