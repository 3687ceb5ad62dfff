"""What folders say: splits by their usual names and places, classes, and what is odd about them."""

import pytest

from mlx_tasks.data.layout import looks_like_no_class, read_layout, split_named


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training Set", "train"),
        ("train2017", "train"),
        ("train_images", "train"),
        ("images-train", "train"),
        ("val2014", "validation"),
        ("valid", "validation"),
        ("test1", "test"),
        ("trainset", "train"),
        ("TestImages", "test"),
        ("train_1", "train"),
        ("seg_train", None),
        ("trainA", None),
        ("trainer", None),
        ("testosterone", None),
        ("train_station", None),
        ("images", None),
        ("2017", None),
        ("test_train", None),
    ],
)
def test_splits_are_known_by_their_usual_names(name, split):
    assert split_named(name) == split


def told(*folders: str) -> dict[str, tuple[str | None, str | None]]:
    layout = read_layout([f"{folder}/1.png" for folder in folders])
    return {folder: (layout.splits[folder], layout.classes[folder]) for folder in folders}


@pytest.mark.parametrize(
    "expected",
    [
        {"archive/train/cat": ("train", "cat"), "archive/test/dog": ("test", "dog")},
        {"a/b/c/train/cat": ("train", "cat"), "a/b/c/val": ("validation", None)},
        {"images/train": ("train", None), "images/val": ("validation", None)},
        {"train/images": ("train", None), "valid/images": ("validation", None)},
        {"train2017": ("train", None), "val2017": ("validation", None)},
        {"cat/train": ("train", "cat"), "dog/train": ("train", "dog"), "dog/test": ("test", "dog")},
        {
            "train/n01/images": ("train", "n01"),
            "train/n02/images": ("train", "n02"),
            "val/images": ("validation", None),
        },
        {"seg_train/seg_train/sea": ("train", "sea"), "seg_test/seg_test/sea": ("test", "sea")},
        {"DIV2K_train_HR": ("train", None), "DIV2K_valid_HR": ("validation", None)},
        {"train/train/cat": ("train", "cat"), "test/test": ("test", None)},
        {"train/train": ("train", "train"), "train/bus": ("train", "bus"), "test/train": ("test", "train")},
        {"train_station": (None, "train_station"), "test_tube": (None, "test_tube")},
        {"cat/images": (None, "cat"), "dog/images": (None, "dog")},
        {"photo": (None, "photo"), "sketch": (None, "sketch")},
        {"images": (None, "images"), "masks": (None, "masks")},
        {"pets/images": (None, None)},
        {"pets/bars": (None, "bars")},
        {"animals/cat": (None, "cat"), "animals/dog": (None, "dog"), "things/cup": (None, "cup")},
    ],
    ids=lambda expected: " ".join(expected),
)
def test_splits_and_classes_of_folders(expected):
    assert told(*expected) == expected


def test_pictures_beside_class_folders_have_no_class():
    assert read_layout(["archive/cat/1.png", "archive/dog/1.png", "archive/2.png"]).classes["archive"] is None


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/a", "test/b", "extra/c"), "move what else is there out (extra)"),
        (("test/a", "val/b"), "none of them is train"),
        (("seg_train/a", "seg_test/b", "seg_pred"), "move what else is there out (seg_pred)"),
        (("trainA", "trainB", "testA", "testB"), "put them as train/A, train/B, test/A"),
        (("set/train/a", "set/test/b", "other/c"), "move what else is there out (other/c)"),
    ],
)
def test_splits_that_are_not_taken_over_are_said_with_why(folders, said):
    (line,) = read_layout([f"{folder}/1.png" for folder in folders]).odd
    assert said in line and "look like splits and are taken as one set" in line


def test_ordinary_folders_are_not_odd():
    assert read_layout(["train/1.png", "cat/1.png", "1.png"]).odd == []
    assert read_layout(["train_station/1.png", "test_tube/1.png", "dev_board/1.png"]).odd == []


def test_names_that_are_no_classes():
    odd = ["images", "padded_images", "JPEGImages", "masks", "train", "val2017", "labels", "annotations", "trimaps"]
    assert all(looks_like_no_class(name) for name in odd)
    assert not any(
        looks_like_no_class(name) for name in ["cat", "train_station", "image_of_a_cat", "3", "labelled cup"]
    )
