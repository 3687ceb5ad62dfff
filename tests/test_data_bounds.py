"""What lies beside pictures is read within bounds: nothing is waited for, and no line is held that no row can be."""

import os
import tracemalloc

import pytest
from PIL import Image

from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_line_of_a_hundred_megabytes_is_refused_and_not_held(folder, name):
    start = b'{"file_name": "0.png", "text": "' if name.endswith("jsonl") else b"file_name,text\n0.png,"
    with (folder / name).open("wb") as file:
        file.write(start)
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"line \d is longer than 1048576 characters"):
        read_folder(folder, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_pipe_in_the_place_of_metadata_is_refused_and_not_waited_for(folder, name):
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        read_folder(folder, 0)


def test_a_pipe_in_the_place_of_a_caption_or_a_picture_costs_that_alone(folder):
    os.mkfifo(folder / "0.txt")
    os.mkfifo(folder / "9.png")
    (folder / "1.txt").mkdir()
    listing = read_folder(folder, 0).candidates
    problems = {candidate.path: candidate.problem for candidate in listing if candidate.problem}
    assert {path: problem[0] for path, problem in problems.items()} == {"9.png": "unreadable"}
    assert [candidate.caption for candidate in listing] == [None] * 5
