"""The validate stage in real workspaces: good data end to end, and every bad input with its own clear word."""

import io
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlx_tasks.config import Config
from mlx_tasks.data.expectations import check_manifest
from mlx_tasks.data.loader import load_split
from mlx_tasks.errors import DataError
from mlx_tasks.hardware import detect
from mlx_tasks.params import parse_config
from mlx_tasks.progress import Progress
from mlx_tasks.stages import validate
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.mlflow_tracker import open_tracker

SHAPES = ("bars", "rings", "spots")


def run(root: Path, repository: Path, data: dict | None = None, **branches) -> StageContext:
    """Run the stage in `root` with these params."""
    shutil.copytree(repository / "include" / "expectations", root / "include" / "expectations", dirs_exist_ok=True)
    shutil.copytree(repository / "include" / "datasets", root / "include" / "datasets", dirs_exist_ok=True)
    config = parse_config(Config().dump() | {"data": Config().dump()["data"] | (data or {})} | branches)
    progress = Progress("validate", root / ".run" / "progress")
    with open_tracker(root, "validate", config) as tracker:
        context = StageContext("validate", config, root, detect(), tracker, progress)
        validate.run(context)
    return context


def picture(shape: str, number: int, side: int = 20) -> Image.Image:
    """A coloured picture of its own: noise under the shape's colour."""
    pixels = np.random.default_rng([SHAPES.index(shape), number]).integers(0, 256, (side, side, 3))
    pixels[..., SHAPES.index(shape)] //= 4
    return Image.fromarray(pixels.astype(np.uint8))


def class_folders(folder: Path, counts: dict[str, int]) -> Path:
    for shape, count in counts.items():
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(shape, number).save(folder / shape / f"{number:03}.png")
    return folder


def manifest(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "work" / "dataset" / "manifest.parquet").set_index("path")


def bomb() -> bytes:
    """The first bytes of a PNG of 30,000 x 30,000 pixels; what follows is never asked for."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(90_001))), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture(scope="module")
def digits(tmp_path_factory, repository) -> Path:
    """A workspace whose validate stage has run on the built-in digits."""
    root = tmp_path_factory.mktemp("digits")
    run(root, repository)
    return root


@pytest.mark.slow
def test_digits_arrays_hold_the_digits(digits):
    """The 8-pixel images are scikit-learn's own pixels, row by row with their labels."""
    frame = manifest(digits)
    source = load_digits()
    expected = np.rint(source.images * 255 / 16).astype(np.uint8)
    images = np.load(digits / "work" / "dataset" / "images" / "8.npy")
    order = [int(path.split("/")[1]) for path in frame.sort_values("index").index]
    np.testing.assert_array_equal(images[..., 0], expected[order])
    np.testing.assert_array_equal(frame.sort_values("index")["class_index"], source.target[order])
    big = np.load(digits / "work" / "dataset" / "images" / "16.npy")
    upscaled = Image.fromarray(expected[order[0]]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(big[0, ..., 0], np.asarray(upscaled))


@pytest.mark.slow
def test_digits_splits_are_their_shares_and_no_digit_is_taken_for_another(digits):
    frame = manifest(digits)
    assert frame["split"].value_counts().to_dict() == {"train": 1168, "test": 449, "validation": 180}
    counts = pd.crosstab(frame["label"], frame["split"])
    total = frame["label"].value_counts()
    assert (counts["test"] - 0.25 * total).abs().max() < 1
    assert (counts["validation"] - 0.1 * total).abs().max() < 1
    assert frame["duplicate_group"].is_unique
    sets = [load_split(digits / "work" / "dataset", 16, split) for split in ("train", "validation", "test")]
    assert [len(images) for images in sets] == [1168, 180, 449]
    assert sets[0].class_names[:3] == ["zero", "one", "two"]
    assert all(
        sets[0].class_names[label] in caption for label, caption in zip(sets[0].labels, sets[0].captions, strict=True)
    )


@pytest.mark.slow
def test_digits_run_leaves_its_summary_metrics_pages_and_records(digits):
    summary = json.loads((digits / "work" / "dataset" / "summary.json").read_text())
    metrics = json.loads((digits / "work" / "metrics" / "validate.json").read_text())
    assert (summary["channels"], summary["labelled"], summary["captioned"]) == (1, True, True)
    assert summary["upscaled"] == {"8": 0, "16": 1797}
    assert summary["domain"]["probability"] > 0.5
    assert (metrics["images"], metrics["refused"], metrics["expectations_failed"]) == (1797, 0, 0)
    assert metrics["expectations"] == len(json.loads((digits / validate.SUITE).read_text())["expectations"])
    pages = {path.relative_to(digits).as_posix() for path in (digits / "work" / "data_docs").rglob("*.html")}
    assert any("validations/manifest" in page for page in pages)
    for page in pages:
        text = (digits / page).read_text()
        fetched = re.findall(r"<(?:link|script|img|source)\b[^>]*(?:https?:)?//[^>]*>|url\(['\"]?https?:[^)]*\)", text)
        assert not fetched, page
        assert "<script" not in text
        assert all(
            (digits / page).parent.joinpath(src).is_file() for src in re.findall(r'<img[^>]*src="([^"]+)"', text)
        )
    index = (digits / "work" / "data_docs" / "index.html").read_text()
    linked = re.findall(r'<li><a href="([^"]+)"', index)
    assert len(linked) == len(pages) - 1
    assert all((digits / "work" / "data_docs" / page).is_file() for page in linked)
    journal = (digits / ".run" / "records" / "validate.jsonl").read_text()
    assert "validate/accepted" in journal
    assert "validate/samples" in journal


@pytest.mark.slow
def test_a_rerun_writes_the_same_dataset(digits, repository, tmp_path):
    run(tmp_path, repository)
    for name in ("manifest.parquet", "images/8.npy", "images/16.npy", "classes.json", "summary.json"):
        one, other = ((root / "work" / "dataset" / name).read_bytes() for root in (digits, tmp_path))
        assert one == other, name
    pages = [sorted((root / "work" / "data_docs").rglob("*.html")) for root in (digits, tmp_path)]
    assert [page.read_bytes() for page in pages[0]] == [page.read_bytes() for page in pages[1]]


@pytest.mark.slow
def test_a_failed_expectation_is_named_with_what_was_seen(digits, repository, tmp_path):
    frame = manifest(digits).reset_index()
    twin = frame["duplicate_group"] < 3
    assert frame.loc[twin, "split"].nunique() > 1  # three images that now share a group and not a split
    frame.loc[twin, "duplicate_group"] = 0
    parameters = {
        "min_images": 5000, "last_index": 1796, "min_side": 8, "max_pixels": 64, "max_aspect_ratio": 1.0,
        "labelled": 1.0, "first_class": 0, "last_class": 9, "class_count": 10,
    }  # fmt: skip
    checks = check_manifest(frame, repository / validate.SUITE, parameters, tmp_path / "docs")
    failed = {check.name: check.observed for check in checks if not check.success}
    assert failed == {
        "expect_table_row_count_to_be_between": "1797",
        "expect_column_max_to_be_between(splits_of_group)": "2",
    }


@pytest.mark.slow
def test_bad_images_go_to_quarantine_with_reason_and_thumbnail(tmp_path, repository, capsys):
    folder = class_folders(tmp_path / "data", {"bars": 50, "rings": 50, "spots": 12})
    whole = (folder / "bars" / "000.png").read_bytes()
    (folder / "bars" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bars" / "text.png").write_text("not an image at all\n" * 9)
    (folder / "bars" / "bomb.png").write_bytes(bomb())
    Image.new("L", (200, 20), 9).save(folder / "rings" / "long.png")
    Image.new("L", (5, 5), 9).save(folder / "rings" / "tiny.png")
    picture("rings", 777).save(folder / "loose.png")
    shutil.copy(folder / "rings" / "000.png", folder / "spots" / "said_to_be_spots.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "bars" / "round.png").symlink_to("round.png")
    (folder / "bars" / "away.png").symlink_to(repository / "README.md")
    (folder / "README.md").write_text("about")
    (folder / ".DS_Store").write_text("")
    run(tmp_path, repository, {"path": "data", "max_quarantined": 0.1})
    refused = {
        "bars/truncated.png": "truncated",
        "bars/text.png": "not_an_image",
        "bars/bomb.png": "bomb",
        "rings/long.png": "bad_aspect",
        "rings/tiny.png": "too_small",
        "loose.png": "missing_label",
        "gone.png": "unreadable",
        "bars/round.png": "unreadable",
        "bars/away.png": "outside_folder",
        "rings/000.png": "bad_label",
        "spots/said_to_be_spots.png": "bad_label",
    }
    frame = manifest(tmp_path)
    assert frame.loc[frame["split"] == "quarantine", "reason"].to_dict() == refused
    assert (frame.loc[list(refused), ["index", "class_index", "duplicate_group"]] == -1).all(axis=None)
    assert sorted(frame.loc[frame["index"] >= 0, "index"]) == list(range(111))
    listed = json.loads((tmp_path / "work" / "quarantine" / "quarantine.json").read_text())
    assert {row["path"]: row["reason"] for row in listed["rows"]} == refused
    page = (tmp_path / "work" / "quarantine" / "index.html").read_text()
    for row in listed["rows"]:
        assert row["path"] in page
        assert max(Image.open(tmp_path / "work" / "quarantine" / row["thumbnail"]).size) == 96
    assert "30000 x 30000 pixels" in page
    summary = json.loads((tmp_path / "work" / "dataset" / "summary.json").read_text())
    assert (summary["images"], summary["accepted"], summary["channels"]) == (122, 111, 3)
    assert summary["told"]["found"][0].startswith("119 images, 3 classes by the folders' names: bars 53, rings 52")
    assert summary["told"]["passed_over"] == ["1 .md, 1 hidden"]
    assert "<li>passed over: 1 .md, 1 hidden</li>" in page
    printed = capsys.readouterr().out
    assert "[validate] passed over: 1 .md, 1 hidden" in printed
    assert re.search(r"refused: .*1 bomb.*\. Look at work/quarantine/index\.html", printed)
    assert '<meta name="viewport"' in page and "color-scheme: light dark" in page


@pytest.mark.slow
def test_a_near_duplicate_across_splits_is_moved(tmp_path, repository):
    """Copies of training images, re-compressed, put into the test folder: they end in train."""
    for split, numbers in (("train", range(60)), ("test", range(60, 90)), ("val", range(90, 99))):
        for number in numbers:
            for shape in SHAPES[:2]:
                (tmp_path / "data" / split / shape).mkdir(parents=True, exist_ok=True)
                smooth = picture(shape, number, 6).resize((48, 48), Image.Resampling.BICUBIC)
                smooth.save(tmp_path / "data" / split / shape / f"{number}.png")
    for number in range(5):
        one = Image.open(tmp_path / "data" / "train" / "bars" / f"{number}.png")
        one.save(tmp_path / "data" / "test" / "bars" / f"copy_{number}.jpg", quality=95)
        shutil.copy(one.filename, tmp_path / "data" / "test" / "bars" / f"same_{number}.png")
    run(tmp_path, repository, {"path": "data"})
    frame = manifest(tmp_path)
    assert frame.groupby("duplicate_group")["split"].nunique().max() == 1
    for number in range(5):
        family = [f"train/bars/{number}.png", f"test/bars/copy_{number}.jpg", f"test/bars/same_{number}.png"]
        assert frame.loc[family, "duplicate_group"].nunique() == 1
        assert set(frame.loc[family, "split"]) == {"train"}
    metrics = json.loads((tmp_path / "work" / "metrics" / "validate.json").read_text())
    assert (metrics["near_duplicate_images"], metrics["near_duplicates_moved"]) == (15, 10)
    assert metrics["test_images"] == 60


@pytest.mark.slow
def test_two_classes_and_captions_in_several_scripts_without_labels(tmp_path, repository):
    two = class_folders(tmp_path / "two" / "data", {"bars": 40, "rings": 40}).parent
    run(two, repository, {"path": "data"}, train=Config().dump()["train"] | {"resolutions": [8, 12, 32]})
    assert json.loads((two / "work" / "dataset" / "classes.json").read_text()) == ["bars", "rings"]
    for side in (8, 12, 32):
        assert np.load(two / "work" / "dataset" / "images" / f"{side}.npy").shape == (80, side, side, 3)

    captioned = tmp_path / "captioned"
    captions = ["rayures café", "縞模様", "полосы", "خطوط"]
    (captioned / "data").mkdir(parents=True)
    with (captioned / "data" / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number in range(80):
            picture("bars", number).convert("L").save(captioned / "data" / f"{number:02}.png")
            row = {"file_name": f"{number:02}.png", "text": captions[number % 4] if number % 10 else ""}
            file.write(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n")
    run(captioned, repository, {"path": "data"})
    train = load_split(captioned / "work" / "dataset", 16, "train")
    assert train.class_names == []
    assert set(train.labels) == {-1}
    assert set(train.captions) == {*captions, ""}
    summary = json.loads((captioned / "work" / "dataset" / "summary.json").read_text())
    assert (summary["captioned"], summary["empty_captions"]) == (True, 8)
    assert "8 images with an empty caption, as given (data.max_uncaptioned)" in summary["told"]["found"]
    assert train.images.shape[-1] == 1


def refused(tmp_path: Path, repository: Path, message: str, data: dict | None = None) -> str:
    """The text of the DataError that the stage ends with; nothing may be left under work/."""
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, repository, {"path": "data"} | (data or {}))
    assert not list((tmp_path / "work").rglob("*"))
    return str(caught.value)


def test_an_empty_folder_is_an_error(tmp_path, repository):
    (tmp_path / "data").mkdir()
    refused(tmp_path, repository, "holds no image files")


def test_one_image_is_an_error(tmp_path, repository):
    class_folders(tmp_path / "data", {"bars": 1})
    refused(tmp_path, repository, r"1 usable image of 1, fewer than data\.min_images 64")


def test_one_class_is_an_error(tmp_path, repository):
    class_folders(tmp_path / "data", {"bars": 70})
    refused(tmp_path, repository, "all 70 images are of one class, 'bars'")


def test_past_the_fraction_the_run_fails_with_a_summary_and_a_page(tmp_path, repository):
    folder = class_folders(tmp_path / "data", {"bars": 60, "rings": 20})
    for number in range(8):
        (folder / "rings" / f"broken_{number}.png").write_text("words")
    for number in range(2):
        (folder / "bars" / f"bomb_{number}.png").write_bytes(bomb())
    text = refused(tmp_path, repository, r"11\.1% of the images are refused, above data\.max_quarantined 5\.0%")
    assert "10 of 90 images were refused" in text
    assert "8 not_an_image" in text
    assert "rings/broken_0.png" in text
    assert "2 bomb" in text
    page = tmp_path / ".run" / "quarantine" / "index.html"
    assert str(page) in text
    assert page.read_text().count("<img") == 10


def test_labels_missing_for_some_are_refused_and_counted(tmp_path, repository):
    folder = class_folders(tmp_path / "data", {"bars": 60, "rings": 20})
    for number in range(20):
        (folder / "rings" / f"{number:03}.png").rename(folder / f"{number:03}.png")
    class_folders(folder, {"spots": 10})
    text = refused(tmp_path, repository, r"22\.2% of the images are refused")
    assert "20 missing_label" in text


def test_what_a_killed_run_left_is_removed(tmp_path, repository):
    class_folders(tmp_path / "data", {"bars": 1})
    for left in ("work/.dataset.abc", ".run/validate-abc", ".run/quarantine"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "old").write_text("old")
    refused(tmp_path, repository, "fewer than")
    assert not (tmp_path / ".run" / "validate-abc").exists()
    assert not (tmp_path / ".run" / "quarantine" / "old").exists()


def test_bytes_of_a_picture_cut_anywhere_never_pass(tmp_path):
    """Every prefix of a PNG but the whole is refused (checked at 60 lengths)."""
    from mlx_tasks.data.decode import Rules, decode_file
    from mlx_tasks.data.reasons import Refusal

    buffer = io.BytesIO()
    picture("bars", 0).save(buffer, "PNG")
    data = buffer.getvalue()
    path = tmp_path / "cut.png"
    for length in np.linspace(0, len(data) - 13, 60).astype(int):  # the last chunk, IEND, is 12 bytes and empty
        path.write_bytes(data[:length])
        with pytest.raises(Refusal):
            decode_file(path, Rules(8, 10_000, 3.0))
