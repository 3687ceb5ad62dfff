"""What the first lines say of data that is perhaps meant otherwise, and of what is passed over."""

import struct
import zlib

import pytest

from mlx_tasks.data.decode import Rules, decode_file
from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.data.quarantine import Refused, summarise
from mlx_tasks.data.reasons import Refusal
from mlx_tasks.data.text import clean_caption
from mlx_tasks.errors import DataError


def lines(folder, *names: str, text: str | bytes = "") -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return "\n".join(read_folder(folder, 0).told.lines())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["Cat/1.png", "cat/2.png", "dog/1.png"], "alone (Cat and cat): if they are one, name them alike"),
        (["golden_retriever/1.png", "Golden Retriever/2.png"], "(Golden Retriever and golden_retriever)"),
        (["nan/1.png", "cat/2.png"], "a class named nan, as programs write a label that is absent"),
        ([f"{pet}_{n}.jpg" for pet in ("Birman", "beagle") for n in range(5)], "begin alike (Birman 5, beagle 5)"),
        ([f"train/{pet}.{n}.jpg" for pet in ("cat", "dog") for n in range(5)], "put each into a folder of its name"),
        (["1.jpg", "1.HEIC", "2.heic", "2.jpg"], "pictures of kinds that are not read (2 .heic): convert them"),
        (["images/1.png", "captions/1.txt"], "beside no image of their name (captions/1.txt, ...)"),
        (["Images/1.jpg", "captions.txt"], "rows about many images are a .csv, .tsv, .jsonl or .parquet"),
        (["1.png", "1.txt", "2.png", "2.txt"], "2 caption files without text: no image has a caption"),
        (["a/1.png", "a/1_mask.png", "b/1.png", "b/1_mask_1.png"], "2 images beside the one that its name is made of"),
        (["cat/1.png", "dog/1.png", "dog/thumbs/1.png"], "1 class named thumbs: that looks like where images lie"),
        (["1.png", "metadata.jsonl"], "metadata.jsonl, which is not read: it has no rows"),
        (["cat/1", "cat/2", "dog/3.png"], "2 without an extension (as .png)"),
    ],
)
def test_what_is_odd_is_said_with_what_to_do(tmp_path, names, said):
    assert said in lines(tmp_path, *names)


@pytest.mark.parametrize(
    "names",
    [
        ["cat/1.png", "dog/2.png", "cat/3.png", "dog/4.png"],
        [f"IMG_{n}.jpg" for n in range(20)],
        [f"{n}.png" for n in range(20)],
        [f"{word}.png" for word in ("one", "two", "three", "four", "five", "six")],
    ],
    ids=["classes", "a camera's names", "numbers", "words"],
)
def test_ordinary_data_is_not_odd(tmp_path, names):
    assert "look at this" not in lines(tmp_path, *names)


def test_captions_of_absent_values_are_told(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,nan\n2.png,a dog\n")
    assert "captions that read nan, as programs write one that is absent: leave them empty" in lines(tmp_path)


def test_a_caption_in_another_encoding_is_named_with_its_picture(tmp_path):
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "2.txt").write_text("a dog")
    (tmp_path / "1.png").write_bytes(b"")
    said = lines(tmp_path, "1.txt", text="caf\u00e9".encode("cp1252"))
    assert "captions that cannot be read, for example that of 1.png: save them as text in UTF-8" in said
    problem = read_folder(tmp_path, 0).candidates[0].problem
    assert problem == ("missing_caption", "its caption file is one whose bytes are no UTF-8 text")


@pytest.mark.parametrize("system", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"])
def test_folders_that_systems_make_hold_no_pictures(tmp_path, system):
    said = lines(tmp_path, "cat/1.png", "dog/1.png", f"cat/{system}/1.png/thumb.jpg", f"{system}/2.png")
    assert "2 images, 2 classes by the folders' names: cat 1, dog 1" in said and "passed over: 2 hidden" in said


def test_captions_that_are_one_text_are_told(tmp_path):
    for number, text in enumerate(("sks", "sks", "sit")):
        (tmp_path / f"{number}.png").write_bytes(b"")
        (tmp_path / f"{number}.txt").write_text(text)
    assert "are one text" not in lines(tmp_path)
    assert "all 3 captions are one text, 'sks': prompts will make no difference" in lines(tmp_path, "2.txt", text="sks")


SETTINGS = "a cat,\nasleep\nNegative prompt: ugly,\nblurred\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1\n"


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (SETTINGS, "a cat, asleep"),
        ("a cat\nSteps: 20, Sampler: Euler a", "a cat"),
        ("Steps: 5 minutes, of walking", "Steps: 5 minutes, of walking"),
    ],
)
def test_of_an_image_programs_settings_the_prompt_alone_is_the_caption(tmp_path, text, caption):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"")
        (tmp_path / f"{number}.txt").write_text(text)
    assert {one.caption for one in read_folder(tmp_path, 0).candidates} == {caption}


def test_an_archive_is_to_be_unpacked_and_an_empty_table_moved_out(tmp_path):
    with pytest.raises(DataError, match=r"It holds 1 \.zip\. Unpack the archives\."):
        lines(tmp_path, "photos.zip")
    with pytest.raises(DataError, match=r"metadata\.csv is empty: it must have a column file_name"):
        lines(tmp_path, "1.png", "metadata.csv")


def test_an_empty_class_folder_is_said(tmp_path):
    (tmp_path / "bird").mkdir()
    assert "passed over: 1 empty folder (bird)" in lines(tmp_path, "cat/1.png", "dog/1.png")


def test_names_cannot_speak_to_the_terminal(tmp_path):
    said = lines(tmp_path, "\u202egnp.exe/1.png", "a\x1b[31m/1.png", "b\nc/1.png", "c/1.x\x1b[2J", "\x1b]0;t\x07.csv")
    assert "\u202e" not in said and "\x1b" not in said and "\x07" not in said and r"\x1b[2j" in said
    refused = [Refused(one, "bad_label", "why \x1b", 0, 0) for one in read_folder(tmp_path, 0).candidates]
    assert r"a\x1b[31m/1.png" in summarise(refused, 2) and r"; the first: why \x1b" in summarise(refused, 2)


@pytest.mark.parametrize("text", ["\u200b", "\u200b \ufeff\n", "\u202e", "\u00a0"])
def test_a_caption_that_shows_nothing_is_empty(text):
    assert clean_caption(text) is None


def test_a_joined_emoji_stays_whole():
    assert clean_caption("\U0001f469\u200d\U0001f680 in space") == "\U0001f469\u200d\U0001f680 in space"


@pytest.mark.parametrize("numbers", ["0 .5 .5 .1 .1", "3 0.5 1. 0 1", "0 0.1 0.2 0.3 0.4 0.5 0.6"])
def test_boxes_are_no_captions_however_numbers_are_written(tmp_path, numbers):
    (tmp_path / "1.png").write_bytes(b"")
    assert "1 caption file of boxes, a class and numbers a line" in lines(tmp_path, "1.txt", text=numbers)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic", "HEIC"),
        (struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (struct.pack(">I", 20) + b"ftypqt  \0\0\0\0qt  ", "video"),
        (b"8BPS\0\1", "PSD"),
        (b"\xff\x0a\x00", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<svg xmlns=", "SVG"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_a_sound_file_of_a_kind_that_is_not_read_is_not_called_damaged(tmp_path, start, kind):
    (tmp_path / "1.jpg").write_bytes(start + zlib.compress(b"x" * 99))
    with pytest.raises(Refusal) as caught:
        decode_file(tmp_path / "1.jpg", Rules(1, 10_000, 10.0))
    assert caught.value.reason == "not_an_image"
    assert caught.value.detail == f"a file of kind {kind}, which is not read: convert it to JPEG or PNG"
