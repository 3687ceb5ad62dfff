"""Links, folders that may not be listed and special files under a dataset's folder."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.data.tree import read_tree
from mlx_tasks.errors import DataError

NOBODY = 65534


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "set"
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(b"")
    return made


def problems(folder: Path) -> dict[str, tuple[str, str]]:
    return {one.path: one.problem for one in read_folder(folder, 0).candidates if one.problem}


def test_broken_links_and_loops_are_unreadable_pictures(folder):
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    (folder / "cat" / "round.jpg").symlink_to("round.jpg")
    (folder / "cup").symlink_to("/nowhere/cup")
    assert problems(folder) == {
        "cat/gone.png": ("unreadable", "a broken link to 'nowhere.png': No such file or directory"),
        "cat/round.jpg": ("unreadable", "a broken link to 'round.jpg': Too many levels of symbolic links"),
        "cup": ("unreadable", "a broken link to '/nowhere/cup': No such file or directory"),
    }
    assert any("3 entries that cannot be read, for example" in line for line in read_folder(folder, 0).told.odd)


def test_links_inside_the_dataset_are_files_and_linked_folders_are_not_followed(folder):
    (folder / "dog" / "also.png").symlink_to("1.png")
    (folder / "dog" / "up").symlink_to("..")
    (folder / "cats").symlink_to("cat")
    tree = read_tree(folder)
    assert tree.paths == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/also.png"]
    assert tree.refused == {}
    assert dict(tree.passed_over) == {"linked folder (cats)": 1, "linked folder (dog/up)": 1}


def test_links_out_of_the_dataset_are_refused_with_the_way_to_take_them_along(folder, tmp_path):
    (tmp_path / "set-two").mkdir()
    (tmp_path / "set-two" / "3.png").write_bytes(b"")
    (folder / "cat" / "3.png").symlink_to(tmp_path / "set-two" / "3.png")
    (folder / "cup").symlink_to(tmp_path / "set-two")
    found = problems(folder)
    assert {path: reason for path, (reason, _) in found.items()} == dict.fromkeys(
        ("cat/3.png", "cup"), "outside_folder"
    )
    assert all("cp -RL follows links" in detail and "set-two" in detail for _, detail in found.values())


def test_a_dataset_that_is_itself_a_link_is_read(folder, tmp_path):
    (tmp_path / "link").symlink_to("set")
    (folder / "dog" / "also.png").symlink_to(folder / "dog" / "1.png")
    assert read_tree(tmp_path / "link").paths == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/also.png"]


def test_a_row_that_names_a_broken_link_says_so(folder):
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "gone.png", "label": "a"}\n')
    assert problems(folder)["gone.png"][0] == "unreadable"


@pytest.mark.parametrize("target", ["nowhere.jsonl", "/etc/hostname"])
def test_metadata_that_is_no_file_of_the_dataset_is_an_error(folder, target):
    (folder / "metadata.jsonl").symlink_to(target)
    with pytest.raises(
        DataError, match=r"metadata\.jsonl cannot be read: it is a (broken link|link out of the folder)"
    ):
        read_folder(folder, 0)


def test_pipes_are_refused_where_they_look_like_pictures_and_never_opened(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    os.mkfifo(folder / "cat" / "1.txt")
    assert problems(folder) == {"cat/pipe.png": ("unreadable", "a pipe, a socket or a device, and no file")}
    assert dict(read_tree(folder).passed_over) == {".txt that is no file (a pipe, a socket or a device)": 1}


@contextlib.contextmanager
def without_rights() -> Iterator[Path]:
    """A folder that others may list, as a user whom rights hold: root is held by none."""
    made, user = Path(tempfile.mkdtemp()), os.geteuid()
    made.chmod(0o755)
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield made
    finally:
        os.seteuid(user)
        for path in made.iterdir():
            path.chmod(0o755)
        shutil.rmtree(made)


def test_a_folder_that_may_not_be_listed_is_unreadable_and_the_rest_is_read():
    user = os.geteuid()
    with without_rights() as made:
        os.seteuid(user)
        for name in ("cat/1.png", "dog/1.png", "locked/1.png"):
            (made / name).parent.mkdir()
            (made / name).write_bytes(b"")
        (made / "locked").chmod(0)
        if user == 0:
            os.seteuid(NOBODY)
        source = read_folder(made, 0)
    assert {one.path: one.problem for one in source.candidates} == {
        "cat/1.png": None,
        "dog/1.png": None,
        "locked": ("unreadable", "the folder cannot be listed: Permission denied"),
    }
