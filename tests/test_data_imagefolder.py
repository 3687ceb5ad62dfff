"""Sources: what a folder's names and metadata say of its images, and what a card does."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.data.listing import Candidate
from mlx_tasks.data.manifest import COLUMNS
from mlx_tasks.data.reasons import REASONS, Refusal
from mlx_tasks.data.sources import read_card, read_source
from mlx_tasks.data.text import clean_caption, clean_label
from mlx_tasks.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    """Files that are images by name; nothing here decodes them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def jsonl(folder: Path, *rows: dict, name: str = "metadata.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def by_path(folder: Path) -> dict[str, Candidate]:
    return {candidate.path: candidate for candidate in read_folder(folder, seed=0).candidates}


def test_class_folders_are_labels_and_captions(tmp_path):
    found = by_path(touch(tmp_path, "tabby_cat/2.png", "tabby_cat/1.JPG", "dog/1.webp", "README.md", ".hidden/3.png"))
    assert list(found) == ["dog/1.webp", "tabby_cat/1.JPG", "tabby_cat/2.png"]
    assert [c.label for c in found.values()] == ["dog", "tabby_cat", "tabby_cat"]
    assert found["tabby_cat/1.JPG"].caption == "tabby cat"


def test_nested_folders_give_the_innermost_name(tmp_path):
    found = by_path(touch(tmp_path, "animals/cat/1.png", "animals/dog/a.png", "things/cup/1.png"))
    assert [c.label for c in found.values()] == ["cat", "dog", "cup"]


def test_metadata_labels_win_over_folder_names(tmp_path):
    touch(tmp_path, "batch_1/1.png", "batch_2/2.png")
    jsonl(tmp_path, {"file_name": "batch_1/1.png", "label": 3}, {"file_name": "batch_2/2.png", "label": "four"})
    assert [c.label for c in by_path(tmp_path).values()] == ["3", "four"]


def test_captions_from_metadata_join_labels_from_folders(tmp_path):
    touch(tmp_path, "cat/1.png", "dog/2.png")
    jsonl(tmp_path / "cat", {"file_name": "1.png", "text": "a cat asleep"})
    found = by_path(tmp_path)
    assert (found["cat/1.png"].label, found["cat/1.png"].caption) == ("cat", "a cat asleep")
    assert (found["dog/2.png"].label, found["dog/2.png"].caption) == ("dog", "dog")


def test_csv_metadata_with_quoted_lines_and_a_byte_order_mark(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png")
    text = '\ufefffile_name,label,caption\nimages/1.png,0,"one, with\na break"\nimages/2.png,1,two\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    found = by_path(tmp_path)
    assert [(c.label, c.caption) for c in found.values()] == [("0", "one, with a break"), ("1", "two")]


def test_captions_alone_make_an_unlabelled_set(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png")
    jsonl(tmp_path, {"file_name": "images/1.png", "text": "one"}, {"file_name": "images/2.png", "text": "two"})
    assert [(c.label, c.caption, c.problem) for c in by_path(tmp_path).values()] == [
        (None, "one", None),
        (None, "two", None),
    ]


def test_captions_in_several_scripts_arrive_in_nfc(tmp_path):
    captions = ["café noir", "猫が眠る", "кот спит", "قطة نائمة", "बिल्ली सो रही है", "한국어 고양이", "🐈 asleep"]
    names = [f"{i}.png" for i in range(len(captions))]
    rows = [
        {"file_name": name, "text": unicodedata.normalize("NFD", text)}
        for name, text in zip(names, captions, strict=True)
    ]
    found = by_path(jsonl(touch(tmp_path, *names), *rows))
    assert [c.caption for c in found.values()] == captions


def test_file_names_match_in_any_unicode_form(tmp_path):
    touch(tmp_path, unicodedata.normalize("NFD", "é.png"))
    jsonl(tmp_path, {"file_name": unicodedata.normalize("NFC", "é.png"), "text": "e"})
    assert by_path(tmp_path)["é.png"].caption == "e"


def test_a_list_of_captions_gives_a_seeded_one(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    jsonl(touch(tmp_path, *names), *({"file_name": name, "caption": ["x", "y"]} for name in names))
    draws = [[c.caption for c in read_folder(tmp_path, seed).candidates] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert 15 < draws[0].count("x") < 45


def test_images_without_the_label_that_others_have_are_marked(tmp_path):
    touch(tmp_path, "1.png", "2.png", "3.png")
    jsonl(tmp_path, {"file_name": "1.png", "label": "a"}, {"file_name": "2.png", "label": None})
    found = by_path(tmp_path)
    assert found["1.png"].problem is None
    assert found["2.png"].problem[0] == found["3.png"].problem[0] == "missing_label"


def test_images_beside_class_folders_have_no_label(tmp_path):
    found = by_path(touch(tmp_path, "cat/1.png", "dog/1.png", "loose.png"))
    assert found["loose.png"].problem[0] == "missing_label"


def test_images_without_the_caption_that_others_have_are_marked(tmp_path):
    jsonl(touch(tmp_path, "1.png", "2.png"), {"file_name": "1.png", "text": "one"})
    assert by_path(tmp_path)["2.png"].problem[0] == "missing_caption"


def test_rows_without_an_image_are_marked(tmp_path):
    touch(tmp_path, "1.png")
    rows = ["1.png", "gone.png", "../outside.png", "/etc/passwd"]
    found = by_path(jsonl(tmp_path, *({"file_name": name, "label": "a"} for name in rows)))
    reasons = {path: candidate.problem and candidate.problem[0] for path, candidate in found.items()}
    assert reasons == {
        "1.png": None,
        "gone.png": "missing_file",
        "../outside.png": "outside_folder",
        "/etc/passwd": "outside_folder",
    }


@pytest.mark.parametrize("label", [True, 1.5, ["a", "b"], {"id": 1}, "two\nlines", "x" * 201, "bell\x07"])
def test_a_label_is_one_line_of_text_or_a_whole_number(tmp_path, label):
    jsonl(touch(tmp_path, "1.png", "2.png"), {"file_name": "1.png", "label": label}, {"file_name": "2.png", "label": 1})
    assert by_path(tmp_path)["1.png"].problem[0] == "bad_label"
    with pytest.raises(Refusal, match="bad_label"):
        clean_label(label)


def test_cleaning_text():
    assert clean_caption("  two\n\tlines\u2028more ") == "two lines more"
    assert clean_caption("half \ud83d pair") == "half \ufffd pair"
    assert clean_caption("\u0000") is None
    assert clean_label(4.0) == "4"
    assert clean_label("  ") is None


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train/a", "valid/a", "testing/b"), {"train/a": "train", "valid/a": "validation", "testing/b": "test"}),
        (("data/train/a", "data/test/b"), {"data/train/a": "train", "data/test/b": "test"}),
        (("train/a", "test/b", "extra/c"), {}),  # one folder is no split: all are classes' parents
        (("test/a", "val/b"), {}),  # no train folder: merged
    ],
)
def test_split_folders_are_taken_over_where_all_are(tmp_path, folders, splits):
    found = by_path(touch(tmp_path, *(f"{folder}/1.png" for folder in folders)))
    assert {path: c.given_split for path, c in found.items()} == {f"{f}/1.png": splits.get(f) for f in folders}
    assert {path: c.label for path, c in found.items()} == {f"{f}/1.png": f[-1] for f in folders}


def test_split_folders_without_classes_are_no_classes(tmp_path):
    found = by_path(touch(tmp_path, "train/1.png", "test/1.png"))
    assert [(c.given_split, c.label) for c in found.values()] == [("test", None), ("train", None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "1.png"}\n{"file_name": \n', r"metadata\.jsonl, line 2 is not JSON"),
        ("metadata.jsonl", "[1, 2]\n", "line 1 must be a JSON object, got list"),
        ("metadata.jsonl", '{"label": 3}\n', "line 1: every row needs a file_name"),
        ("metadata.jsonl", '{"file_name": "1.png"}\n' * 2, "'1.png' has a row already"),
        ("metadata.csv", "name,label\n1.png,2\n", "must have a column file_name"),
    ],
)
def test_metadata_that_cannot_be_read_names_its_line(tmp_path, name, text, message):
    touch(tmp_path, "1.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, 0)


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=r"holds no image files.*\.png"):
        read_folder(tmp_path, 0)


def test_a_path_to_nothing_says_so(tmp_path):
    with pytest.raises(DataError, match=r"data\.path must name a folder of images or a dataset card"):
        read_source(tmp_path, "nowhere", 0)


def test_paths_are_relative_to_the_workspace_or_absolute(tmp_path):
    touch(tmp_path, "pictures/a/1.png", "pictures/b/1.png")
    for path in ("pictures", str(tmp_path / "pictures")):
        assert [c.path for c in read_source(tmp_path, path, 0).candidates] == ["a/1.png", "b/1.png"]


def test_the_digits_card_gives_the_digits(repository):
    source = read_source(repository, "include/datasets/digits.yaml", 0)
    digits = load_digits()
    names = "zero one two three four five six seven eight nine".split()
    assert [c.label for c in source.candidates] == [names[target] for target in digits.target]
    pixels = np.stack([c.pixels for c in source.candidates]).astype(float)
    np.testing.assert_array_equal(np.rint(pixels * 16 / 255), digits.images)


def test_digits_captions_are_templates_drawn_by_the_seed(repository):
    card = repository / "include" / "datasets" / "digits.yaml"
    templates = yaml.safe_load(card.read_text())["captions"]
    one, again, other = (read_card(card, seed).candidates for seed in (0, 0, 1))
    assert [c.caption for c in one] == [c.caption for c in again] != [c.caption for c in other]
    for template in templates:
        share = np.mean([c.caption == template.format(label=c.label) for c in one])
        assert share == pytest.approx(1 / 3, abs=0.05)


def test_a_card_that_disagrees_with_its_loader_is_refused(repository, tmp_path):
    card = yaml.safe_load((repository / "include" / "datasets" / "digits.yaml").read_text())
    for key, value, message in (("images", 5, "gives"), ("loader", "os.system", "loader must be one of")):
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(card | {key: value}))
        with pytest.raises(DataError, match=message):
            read_card(tmp_path / "card.yaml", 0)


def test_the_docs_explain_every_reason_and_column(repository):
    text = (repository / "docs" / "data.md").read_text(encoding="utf-8")
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in text
    for column in COLUMNS:
        assert f"`{column}`" in text
