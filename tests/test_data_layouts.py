"""Layouts that people bring, each a row of docs/data.md's table: what is read, and what is said of the rest."""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.data.sources import Source


class Layout(NamedTuple):
    """A row of the table and what it stands for.

    Attributes:
        said: the row's last cell, a part of what is told; empty where nothing is.
        files: {path: text}; pictures are empty, since nothing here decodes them.
        offered: {path: (label, caption, given split)}.
    """

    said: str
    files: dict[str, str | bytes]
    offered: dict[str, tuple[str | None, str | None, str | None]]


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows: list[dict], folder: Path) -> bytes:
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


BOX = "0 0.5 0.5 0.25 0.125\n"
LAYOUTS = {
    "`cat/1.png dog/2.png`": Layout(
        "", {"cat/1.png": "", "dog/2.png": ""}, {"cat/1.png": ("cat", "cat", None), "dog/2.png": ("dog", "dog", None)}
    ),
    "`cat/images/1.png dog/images/2.png`": Layout(
        "",
        {"cat/images/1.png": "", "dog/images/2.png": ""},
        {"cat/images/1.png": ("cat", "cat", None), "dog/images/2.png": ("dog", "dog", None)},
    ),
    "`images/1.png images/2.png`": Layout(
        "", {"images/1.png": "", "images/2.png": ""}, {f"images/{n}.png": (None, None, None) for n in (1, 2)}
    ),
    "`1.png 1.txt`": Layout(
        "captions beside the images: 2 .txt",
        {"1.png": "", "1.txt": "one", "2.png": "", "2.txt": "two\n"},
        {"1.png": (None, "one", None), "2.png": (None, "two", None)},
    ),
    "`img/10_dog/1.png img/10_dog/1.caption`": Layout(
        "captions beside the images: 1 .caption",
        {"img/10_dog/1.png": "", "img/10_dog/1.caption": "one"},
        {"img/10_dog/1.png": (None, "one", None)},
    ),
    "`cat/1.png cat/1.png.txt dog/2.png`": Layout(
        "captions beside the images: 1 .txt",
        {"cat/1.png": "", "cat/1.png.txt": "asleep", "dog/2.png": ""},
        {"cat/1.png": ("cat", "asleep", None), "dog/2.png": ("dog", "dog", None)},
    ),
    "`images/1.png metadata.jsonl` (`file_name`, `text`)": Layout(
        "metadata.jsonl: rows about images, by the columns file_name, text",
        {"images/1.png": "", "metadata.jsonl": lines({"file_name": "images/1.png", "text": "one"})},
        {"images/1.png": (None, "one", None)},
    ),
    "`train/1.png train/metadata.csv` (`file_name`, `label`)": Layout(
        "train/metadata.csv: rows about images, by the columns file_name, label",
        {"train/1.png": "", "train/2.png": "", "train/metadata.csv": "file_name,label\n1.png,a\n2.png,b\n"},
        {"train/1.png": ("a", "a", "train"), "train/2.png": ("b", "b", "train")},
    ),
    "`1.png captions.csv` (`Image`; `Prompt`)": Layout(
        "captions.csv: rows about images, by the columns Image, Prompt",
        {"1.png": "", "captions.csv": "Image;Prompt\n1.png;one\n"},
        {"1.png": (None, "one", None)},
    ),
    "`1.png meta.json` (`{picture: caption}`)": Layout(
        "meta.json: rows about images, by the columns file_name, text",
        {"1.png": "", "meta.json": json.dumps({"1.png": "one"})},
        {"1.png": (None, "one", None)},
    ),
    "`images/1.png padded_images/1.png metadata1000.jsonl`": Layout(
        "1 image of padded_images/, none of which has a caption",
        {
            "images/1.png": "",
            "padded_images/1.png": "",
            "metadata1000.jsonl": lines({"file": "images/1.png", "caption": "one"}),
        },
        {"images/1.png": (None, "one", None)},
    ),
    "`cat/1.png dog/2.png notes.csv`": Layout(
        "notes.csv, which is not read: it must have a column file_name",
        {"cat/1.png": "", "dog/2.png": "", "notes.csv": "who,when\nme,now\n"},
        {"cat/1.png": ("cat", "cat", None), "dog/2.png": ("dog", "dog", None)},
    ),
    "`train/cat/1.png train/dog/2.png test/cat/3.png`": Layout(
        "split folders: test, train; validation taken from train",
        {"train/cat/1.png": "", "train/dog/2.png": "", "test/cat/3.png": ""},
        {
            "train/cat/1.png": ("cat", "cat", "train"),
            "train/dog/2.png": ("dog", "dog", "train"),
            "test/cat/3.png": ("cat", "cat", "test"),
        },
    ),
    "`archive/train/cat/1.png archive/test/dog/2.png ...`": Layout(
        "split folders: test, train",
        {"archive/train/cat/1.png": "", "archive/train/dog/3.png": "", "archive/test/dog/2.png": ""},
        {
            "archive/test/dog/2.png": ("dog", "dog", "test"),
            "archive/train/cat/1.png": ("cat", "cat", "train"),
            "archive/train/dog/3.png": ("dog", "dog", "train"),
        },
    ),
    "`images/train/1.png images/val/2.png labels/train/1.txt`": Layout(
        "passed over: 1 .txt",
        {"images/train/1.png": "", "images/val/2.png": "", "labels/train/1.txt": BOX},
        {"images/train/1.png": (None, None, "train"), "images/val/2.png": (None, None, "validation")},
    ),
    "`train/images/1.png valid/images/2.png train/images/1.txt` (boxes)": Layout(
        "1 caption file of boxes, a class and numbers a line",
        {"train/images/1.png": "", "valid/images/2.png": "", "train/images/1.txt": BOX},
        {"train/images/1.png": (None, None, "train"), "valid/images/2.png": (None, None, "validation")},
    ),
    "`train2017/1.jpg val2017/2.jpg annotations/captions.json`": Layout(
        "annotations/captions.json, which is not read",
        {"train2017/1.jpg": "", "val2017/2.jpg": "", "annotations/captions.json": '{"images": [], "annotations": []}'},
        {"train2017/1.jpg": (None, None, "train"), "val2017/2.jpg": (None, None, "validation")},
    ),
    "`cat/train/1.png dog/train/2.png cat/test/3.png`": Layout(
        "split folders: test, train",
        {"cat/train/1.png": "", "dog/train/2.png": "", "cat/test/3.png": ""},
        {
            "cat/train/1.png": ("cat", "cat", "train"),
            "dog/train/2.png": ("dog", "dog", "train"),
            "cat/test/3.png": ("cat", "cat", "test"),
        },
    ),
    "`seg_train/seg_train/sea/1.png seg_train/seg_train/ice/2.png seg_test/seg_test/sea/3.png`": Layout(
        "split folders: test, train",
        {
            "seg_train/seg_train/sea/1.png": "",
            "seg_train/seg_train/ice/2.png": "",
            "seg_test/seg_test/sea/3.png": "",
        },
        {
            "seg_train/seg_train/sea/1.png": ("sea", "sea", "train"),
            "seg_train/seg_train/ice/2.png": ("ice", "ice", "train"),
            "seg_test/seg_test/sea/3.png": ("sea", "sea", "test"),
        },
    ),
    "`trainA/1.png trainB/2.png testA/3.png testB/4.png`": Layout(
        "their names differ in more than the split: put them as train/A, train/B, test/A",
        {f"{name}/1.png": "" for name in ("trainA", "trainB", "testA", "testB")},
        {f"{name}/1.png": (name, name, None) for name in ("trainA", "trainB", "testA", "testB")},
    ),
    "`train/cat/1.png train/dog/2.png val/3.png` (no classes in val)": Layout(
        "1 image of val/, none of which has a label",
        {"train/cat/1.png": "", "train/dog/2.png": "", "val/3.png": ""},
        {"train/cat/1.png": ("cat", "cat", "train"), "train/dog/2.png": ("dog", "dog", "train")},
    ),
    "`train/cat/1.png test/dog/2.png more/cup/3.png`": Layout(
        "test, train look like splits and are taken as one set: to keep the splits, move what else is there out (more)",
        {"train/cat/1.png": "", "test/dog/2.png": "", "more/cup/3.png": ""},
        {
            "more/cup/3.png": ("cup", "cup", None),
            "test/dog/2.png": ("dog", "dog", None),
            "train/cat/1.png": ("cat", "cat", None),
        },
    ),
    "`images/1.png masks/1.png`": Layout(
        "2 classes named images, masks: that looks like where images lie",
        {"images/1.png": "", "masks/1.png": ""},
        {"images/1.png": ("images", "images", None), "masks/1.png": ("masks", "masks", None)},
    ),
    "`cat/1.png cat/._1.png dog/2.png __MACOSX/._1.png`": Layout(
        "passed over: 2 hidden",
        {"cat/1.png": "", "cat/._1.png": "", "dog/2.png": "", "__MACOSX/._1.png": ""},
        {"cat/1.png": ("cat", "cat", None), "dog/2.png": ("dog", "dog", None)},
    ),
}


def build(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def offered(source: Source) -> dict[str, tuple[str | None, str | None, str | None]]:
    assert [one.path for one in source.candidates if one.problem] == []
    return {one.path: (one.label, one.caption, one.given_split) for one in source.candidates}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_the_table_says(tmp_path, name):
    layout = LAYOUTS[name]
    source = read_folder(build(tmp_path / "set", layout.files), seed=0)
    assert offered(source) == layout.offered
    assert layout.said in "\n".join(source.told.lines())


def row(name: str, layout: Layout) -> str:
    """The table's row, from what the case expects."""
    labels, captions, splits = (
        list(dict.fromkeys(one[i] for one in sorted(layout.offered.values(), key=str) if one[i])) for i in range(3)
    )
    own = [caption for caption in captions if caption not in labels]
    told = ", ".join(own) if own else "the label" if captions else "none"
    cells = (name, ", ".join(labels) or "none", told, ", ".join(splits) or "by the seed", layout.said)
    return "| " + " | ".join(cells) + " |"


def test_the_docs_hold_a_row_for_each_layout_and_no_other(repository):
    text = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split("| layout |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    assert table == [row(name, layout) for name, layout in LAYOUTS.items()]


@pytest.mark.parametrize("name", ["metadata.parquet", "about.parquet"])
def test_parquet_rows_are_read(tmp_path, name):
    rows = [{"file_name": f"{n}.png", "prompt": f"number {n}", "size": n} for n in range(3)]
    files = {f"{n}.png": "" for n in range(3)} | {name: parquet(rows, tmp_path)}
    source = read_folder(build(tmp_path / "set", files), seed=0)
    assert [one.caption for one in source.candidates] == ["number 0", "number 1", "number 2"]
    assert f"found: {name}: rows about images, by the columns file_name, prompt" in source.told.lines()


@pytest.mark.parametrize(
    "column", ["file_name", "image_file_name", "File Name", "filename", "file", "image", "image_path", "path"]
)
@pytest.mark.parametrize("caption", ["text", "caption", "prompt"])
def test_columns_of_usual_names_are_read(tmp_path, column, caption):
    files = {"a/1.png": "", "captions.jsonl": lines({column: "a/1.png", caption: "one"})}
    assert offered(read_folder(build(tmp_path, files), 0)) == {"a/1.png": (None, "one", None)}


@pytest.mark.parametrize(
    ("written", "meant", "how"),
    [
        ("images\\1.png", "images/1.png", "backslashes"),
        ("images/%31.png", "images/1.png", "URL-encoded"),
        ("IMAGES/1.PNG", "images/1.png", "upper and lower case"),
        ("images/1.jpeg", "images/1.png", "another extension"),
        ("images/1", "images/1.png", "another extension"),
        ("1.png", "images/1.png", "another folder"),
        ("home/me/set/images/1.png", "images/1.png", "another folder"),
        ("1.JPG", "images/1.png", "another folder and extension"),
        ("C:\\set\\images\\1.png", "images/1.png", "backslashes, another folder"),
    ],
)
def test_a_row_that_almost_names_a_picture_says_which(tmp_path, written, meant, how):
    files = {"images/1.png": "", "images/2.png": "", "metadata.jsonl": lines({"file_name": written, "text": "one"})}
    lost = [one.problem for one in read_folder(build(tmp_path, files), 0).candidates if one.file is None]
    assert lost == [("missing_file", f"file_name {written!r}; almost {meant!r} ({how})")]


def test_a_row_with_a_leading_slash_says_which_picture_it_means(tmp_path):
    files = {"images/1.png": "", "metadata.jsonl": lines({"file_name": "/images/1.png", "text": "one"})}
    lost = [one.problem for one in read_folder(build(tmp_path, files), 0).candidates if one.file is None]
    assert lost == [("outside_folder", "file_name '/images/1.png'; almost 'images/1.png' (a leading slash)")]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("rows.csv", "image,text\n1.png,a\n1.png,b\n", "'1.png' has a row already"),
        ("rows.csv", "image,width\n1.png,3\n", "it has neither captions nor labels"),
        ("rows.csv", "image,text\n", "it has no rows"),
        ("rows.csv", "image,text\n7.png,a\n8.png,b\n1.png,c\n", "only 1 of its 3 rows name an image that is there"),
        ("rows.csv", b"image,text\n1.png,\xff\xfe\n", "as UTF-8"),
        ("rows.jsonl", '{"image": "1.png"\n', "line 1 is not JSON"),
        ("rows.json", "[" * 100_000, "nested too deeply"),
        ("rows.parquet", b"PAR1", "it is not Parquet"),
    ],
)
def test_a_table_of_another_name_that_cannot_be_metadata_is_named_with_why(tmp_path, name, text, why):
    source = read_folder(build(tmp_path, {"1.png": "", "2.png": "", name: text}), 0)
    assert [one.caption for one in source.candidates] == [None, None]
    said = "\n".join(source.told.passed_over)
    assert f"{name}, which is not read: " in said and why in said
    assert "that would be metadata.jsonl (or .csv, .parquet) with file_name" in said


def test_two_tables_of_the_same_pictures_are_both_named_and_neither_read(tmp_path):
    files = {"1.png": "", "a.csv": "image,text\n1.png,a\n", "b.csv": "image,text\n1.png,b\n"}
    source = read_folder(build(tmp_path, files), 0)
    assert source.candidates[0].caption is None
    assert "a.csv, which is not read: b.csv names the same images" in source.told.passed_over


def test_two_tables_of_different_pictures_are_both_read(tmp_path):
    files = {"1.png": "", "2.png": "", "a.csv": "image,text\n1.png,a\n", "b.csv": "image,text\n2.png,b\n"}
    assert [one.caption for one in read_folder(build(tmp_path, files), 0).candidates] == ["a", "b"]


def test_metadata_wins_over_the_file_beside_the_picture(tmp_path):
    files = {"1.png": "", "2.png": "", "1.txt": "text", "2.txt": "text"}
    files["metadata.jsonl"] = lines({"file_name": "1.png", "text": "row"})
    assert [one.caption for one in read_folder(build(tmp_path, files), 0).candidates] == ["row", "text"]


def test_lines_of_a_caption_file_are_captions_of_which_the_seed_takes_one(tmp_path):
    files = {f"{n}.png": "" for n in range(40)} | {f"{n}.txt": "x\n\ny\n" for n in range(40)}
    build(tmp_path, files)
    draws = [[one.caption for one in read_folder(tmp_path, seed).candidates] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == {"x", "y"}


def test_a_stray_text_beside_one_of_many_images_is_no_caption(tmp_path):
    source = read_folder(build(tmp_path, {f"{n:02}.png": "" for n in range(11)} | {"07.txt": "a licence"}), 0)
    assert {(one.caption, one.problem) for one in source.candidates} == {(None, None)}
    assert source.told.passed_over == ["1 caption file beside images, too few to be captions of them all"]


def test_caption_files_that_are_no_text_are_counted_and_their_pictures_marked(tmp_path):
    files = {
        "1.png": "",
        "1.txt": "ü".encode("utf-16"),
        "2.png": "",
        "2.txt": b"\xff\x00\x01",
        "3.png": "",
        "3.txt": "a" * 70_000,
    }
    source = read_folder(build(tmp_path, files), 0)
    assert [one.caption for one in source.candidates] == ["ü", None, None]
    assert [one.problem and one.problem[0] for one in source.candidates] == [None, "missing_caption", "missing_caption"]
    assert "1 caption file over 64 KB" in source.told.passed_over
    assert "1 caption file whose bytes are no UTF-8 text" in source.told.passed_over


def captions_with_empty(tmp_path: Path, empty: int, kind: str) -> list[tuple[str | None, str | None]]:
    """(caption, reason) of ten pictures, `empty` of which have a caption without text, by a row or a file."""
    texts = {f"{n}": "" if n < empty else f"number {n}" for n in range(10)}
    files: dict[str, str | bytes] = {f"{n}.png": "" for n in texts}
    if kind == "rows":
        files["metadata.jsonl"] = lines(*({"file_name": f"{n}.png", "text": text} for n, text in texts.items()))
    else:
        files |= {f"{n}.txt": text for n, text in texts.items()}
    found = read_folder(build(tmp_path, files), 0, max_uncaptioned=0.2)
    assert (f"found: {empty} images with an empty caption" in "\n".join(found.told.lines())) == (empty == 2)
    return [(one.caption, one.problem and one.problem[1]) for one in found.candidates]


@pytest.mark.parametrize("kind", ["rows", "files"])
def test_a_share_of_captions_may_be_empty_on_purpose(tmp_path, kind):
    assert captions_with_empty(tmp_path, 2, kind)[:3] == [(None, None), (None, None), ("number 2", None)]


@pytest.mark.parametrize("kind", ["rows", "files"])
def test_more_empty_captions_than_that_are_refused_with_the_rule(tmp_path, kind):
    found = captions_with_empty(tmp_path, 3, kind)
    assert {why for _, why in found[:3]} == {"empty, as 30.0% of the captions are, above data.max_uncaptioned 20.0%"}
    assert found[3] == ("number 3", None)


def test_a_picture_that_nothing_speaks_of_is_not_empty_on_purpose(tmp_path):
    files = {f"{n}.png": "" for n in range(10)} | {f"{n}.txt": "text" for n in range(9)}
    assert read_folder(build(tmp_path, files), 0).candidates[9].problem == ("missing_caption", "other images have one")
