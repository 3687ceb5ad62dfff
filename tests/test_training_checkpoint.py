"""A checkpoint is whole or it is not there, whatever happened to the disk or to the writer."""

import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks.errors import CheckpointError
from mlx_tasks.training import checkpoint
from mlx_tasks.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint


def arrays(value):
    return {"a.weight": mx.full((3, 5), float(value)), "step": mx.array(value, mx.uint64)}


def saved_steps(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


def test_what_comes_back_is_what_was_saved_to_the_bit(tmp_path):
    given = {
        "single": mx.random.normal((7, 3), key=mx.random.key(0)),
        "half": mx.random.normal((5,), key=mx.random.key(1)).astype(mx.float16),
        "brain": mx.random.normal((5,), key=mx.random.key(2)).astype(mx.bfloat16),
        "counter": mx.array(2**40 + 1, mx.uint64),
        "flags": mx.array([True, False]),
        "none": mx.zeros((0, 4)),
        "infinite": mx.array([float("nan"), float("inf"), -0.0]),
    }
    save_checkpoint(tmp_path, 3, given, {"notes": {"rows": [[1, 0.5]]}, "name": "ü"})
    found = load_checkpoint(tmp_path)
    assert found.step == 3 and found.state == {"notes": {"rows": [[1, 0.5]]}, "name": "ü"}
    assert {name: (a.dtype, a.shape) for name, a in found.arrays.items()} == {
        name: (a.dtype, a.shape) for name, a in given.items()
    }
    for name, array in given.items():
        both = [a.view(mx.uint16) if a.dtype == mx.bfloat16 else a for a in (array, found.arrays[name])]
        assert np.array(both[0]).tobytes() == np.array(both[1]).tobytes(), name


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, arrays(step), {})
    assert saved_steps(tmp_path) == [10, 15]
    assert load_checkpoint(tmp_path).step == 15


def test_a_run_that_starts_again_below_old_steps_is_not_overtaken_by_them(tmp_path):
    for step in (90, 100):
        save_checkpoint(tmp_path, step, arrays(step), {})
    save_checkpoint(tmp_path, 10, arrays(10), {})
    assert saved_steps(tmp_path) == [10]


def test_nothing_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "absent") is None
    clear_checkpoints(tmp_path / "absent")


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "digest"])
def test_cut_short_at_any_byte_it_is_skipped_with_a_warning(tmp_path, caplog, name):
    save_checkpoint(tmp_path, 1, arrays(1), {"k": 1})
    save_checkpoint(tmp_path, 2, arrays(2), {"k": 2})
    path = tmp_path / "step_00000002" / name
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert load_checkpoint(tmp_path).step == 1, length
        assert "step_00000002" in caplog.text
    path.write_bytes(whole)
    assert load_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json", "digest"])
def test_a_missing_file_or_a_flipped_bit_is_noticed(tmp_path, name):
    save_checkpoint(tmp_path, 1, arrays(1), {})
    save_checkpoint(tmp_path, 2, arrays(2), {})
    path = tmp_path / "step_00000002" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert load_checkpoint(tmp_path).step == 1, place
    path.unlink()
    assert load_checkpoint(tmp_path).step == 1


def test_all_damaged_is_none(tmp_path):
    save_checkpoint(tmp_path, 1, arrays(1), {})
    (tmp_path / "step_00000001" / "digest").write_text("0" * 64)
    assert load_checkpoint(tmp_path) is None


def test_a_full_disk_leaves_the_previous_one_and_says_what_to_free(tmp_path, monkeypatch):
    """The write fails after every possible number of whole files and with bytes already written."""
    save_checkpoint(tmp_path, 1, arrays(1), {"k": 1})
    real = checkpoint._write
    for full_after in range(3):
        written = []

        def write(path, data, written=written, full_after=full_after):
            if len(written) == full_after:
                path.write_bytes(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path)
            real(path, data)

        monkeypatch.setattr(checkpoint, "_write", write)
        with pytest.raises(CheckpointError, match=r"No space left.*step 1 is whole.*free at least .* MiB"):
            save_checkpoint(tmp_path, 2, arrays(2), {})
        assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
        assert load_checkpoint(tmp_path).state == {"k": 1}


def test_the_kernel_refusing_bytes_is_a_full_disk_too(tmp_path):
    """RLIMIT_FSIZE makes write(2) itself fail in mid-file, with EFBIG: no function of ours is replaced."""
    save_checkpoint(tmp_path, 1, arrays(1), {"k": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(CheckpointError, match="free at least"):
            save_checkpoint(tmp_path, 2, {"big": mx.zeros((5000,))}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(tmp_path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_a_full_file_system_refuses_and_the_previous_one_loads(tmp_path):
    """A real file system of 1 MiB, where one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        save_checkpoint(disk, 1, {"a": mx.ones((100_000,))}, {})
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(disk, 2, {"a": mx.ones((200_000,))}, {})
        assert load_checkpoint(disk).step == 1
        assert saved_steps(disk) == [1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_a_killed_writer_left_is_swept(tmp_path):
    """A real SIGKILL between the first file and the rename."""
    code = """
import os, signal, sys
from pathlib import Path
from mlx_tasks import hardware
hardware.prepare()
import mlx.core as mx
from mlx_tasks.training import checkpoint
folder = Path(sys.argv[1])
checkpoint.save_checkpoint(folder, 1, {"a": mx.ones((4,))}, {})
real = checkpoint._write
def write(path, data):
    real(path, data)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint._write = write
checkpoint.save_checkpoint(folder, 2, {"a": mx.ones((4,))}, {})
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert ended.returncode == -9
    assert any(path.name.startswith(".step_") for path in tmp_path.iterdir())
    assert load_checkpoint(tmp_path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_state_that_json_has_no_place_for_is_refused_before_writing(tmp_path):
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path, 1, arrays(1), {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path, 1, arrays(1), {"loss": 0.1})
    text = (tmp_path / "step_00000001" / "state.json").read_text()
    assert json.loads(text) == {"step": 1, "state": {"loss": 0.1}}
