"""Tables as spreadsheets, editors and libraries write them: read as meant, or refused by line with what to do."""

import io

import pandas as pd
import pytest

from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.errors import DataError, ExitCode


def folder(tmp_path, name: str, content: str | bytes):
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


ROWS = "file_name,text\n1.png,one\n2.png,two\n3.png,three\n"


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        ROWS.replace("\n", "\r\n").encode("utf-8-sig"),
        ROWS.encode("utf-16"),
        "\n\n" + ROWS,
        "sep=;\n" + ROWS.replace(",", ";"),
        ROWS.replace(",", "|"),
        ROWS.replace(",", "\t"),
        ROWS.replace(",", ', "').replace("\n", '"\n'),
        ROWS.replace("\n", ",,\n"),
        ROWS.replace("\n", "\n\n"),
    ],
    ids=["plain", "windows", "utf-16", "blank lines first", "sep=", "bars", "tabs", "blanks", "empty cells", "gaps"],
)
def test_csv_of_any_program_says_the_same(tmp_path, content):
    source = read_folder(folder(tmp_path, "metadata.csv", content), 0)
    assert [one.caption for one in source.candidates] == ["one", "two", "three"]
    assert source.told.passed_over == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "metadata.csv",
            "file_name,text\n1.png,a dog, asleep\n",
            "line 2 has 3 cells where the header has 2: put quotes",
        ),
        ("metadata.csv", "file_name,label\n1.png,a\n2.png,b,c\n", "line 3 has 3 cells where the header has 2"),
        ("metadata.csv", 'file_name,text\n1.png,a\n2.png,"b\n3.png,c\n', "after line 2. A quote is left open"),
        ("metadata.csv", 'file_name,text\n1.png,"a" b\n', "a quote is written twice"),
        ("metadata.csv", "file_name,text,text\n1.png,a,b\n", "has 2 columns named text: keep one"),
        ("metadata.csv", "1.png,a\n2.png,b\n", "the first row names the columns"),
        ("metadata.csv", "file_name,text\n1.png,caf\u00e9\n".encode("cp1252"), "Save it as UTF-8"),
        ("metadata.csv", ROWS + "1.png,again\n", "several captions of one are a list"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": "a"},\n', "with no comma behind it"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": "a",}\n', "or before its brace"),
        ("metadata.jsonl", '[\n{"file_name": "1.png", "text": "a"}\n]\n', "is called metadata.json"),
    ],
)
def test_a_table_that_could_be_read_wrongly_is_refused_with_what_to_do(tmp_path, name, content, said):
    with pytest.raises(DataError) as caught:
        read_folder(folder(tmp_path, name, content), 0)
    assert said in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_that_are_not_read_are_named(tmp_path, kind):
    frame = pd.DataFrame({"file_name": ["1.png", "2.png", "3.png"], "species": "cat", "width": 3})
    out = io.BytesIO()
    if kind == "csv":
        frame.to_csv(out, index=False)
    elif kind == "jsonl":
        frame.to_json(out, orient="records", lines=True)
    else:
        frame.to_parquet(out)
    (line,) = read_folder(folder(tmp_path, f"metadata.{kind}", out.getvalue()), 0).told.passed_over
    assert line.startswith(
        f"columns of metadata.{kind} that are not read: species, width (labels are in a column label"
    )


def test_labels_that_are_lists_of_boxes_classes_are_named_as_not_read(tmp_path):
    rows = '{"file_name": "1.png", "labels": [1, 2]}\n{"file_name": "2.png", "labels": [1]}\n{"file_name": "3.png"}\n'
    source = read_folder(folder(tmp_path, "metadata.jsonl", rows), 0)
    assert source.told.found[1] == "metadata.jsonl: rows about images, by the columns file_name"
    assert source.told.passed_over[0].startswith("columns of metadata.jsonl that are not read: labels (labels are in")


def test_pictures_inside_parquet_are_not_read_and_that_is_said_in_words(tmp_path):
    out = io.BytesIO()
    pd.DataFrame({"image": [{"bytes": b"\x89PNG", "path": "1.png"}], "text": ["a"]}).to_parquet(out)
    said = read_folder(folder(tmp_path, "train-00000-of-00001.parquet", out.getvalue()), 0).told.passed_over
    assert "which is not read: it holds pictures inside, in its column image: save them as files" in said[0]
