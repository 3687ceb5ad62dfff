"""Metadata and captions made to break a reader: depth, size, surrogates, zeros; each is an error or a refusal."""

import pytest

from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.errors import DataError, ExitCode


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "1.png", "x": ' + "[" * 50_000 + "]" * 50_000 + "}", "line 1 is nested too deeply"),
        ('{"a":' * 50_000, "line 1 is nested too deeply"),
        ('{"file_name": "1.png", "label": ' + "9" * 5_000 + "}", "line 1 is not JSON"),
        ('{"file_name": ["1.png"]}', "every row needs a file_name"),
        ('{"file_name": {"path": "1.png"}}', "every row needs a file_name"),
        ('{"file_name": "  "}', "every row needs a file_name"),
        ("\0", "line 1 is not JSON"),
    ],
    ids=range(7),
)
def test_a_line_that_cannot_be_a_row_is_an_error_that_is_not_retried(tmp_path, line, said):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=said) as caught:
        read_folder(tmp_path, 0)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()


def test_csv_cells_beyond_the_limit_of_the_reader_are_an_error(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png," + "x" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"metadata\.csv is not CSV: field larger than field limit"):
        read_folder(tmp_path, 0)


@pytest.mark.parametrize(
    "label", ["1e400", "-1e400", "NaN", "1e300", "9" * 4_000, r'"\ud800"', r'"a\u0000b"', r'"a\nb"']
)
def test_labels_of_odd_values_are_refused_with_a_short_word(tmp_path, label):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"")
    rows = f'{{"file_name": "1.png", "label": {label}}}\n{{"file_name": "2.png", "label": "sound"}}\n'
    (tmp_path / "metadata.jsonl").write_text(rows)
    odd, sound = read_folder(tmp_path, 0).candidates
    assert odd.problem is not None and odd.problem[0] == "bad_label" and len(odd.problem[1]) < 200
    odd.problem[1].encode()
    assert sound.label == "sound"


@pytest.mark.parametrize(
    "name", [r"\ud83d.png", r"a\u0000b.png", "x" * 5_000 + ".png", "a/" * 3_000 + "1.png", "..", r"\u202e.png"]
)
def test_names_that_no_file_has_are_refusals_that_can_be_written(tmp_path, name):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(
        f'{{"file_name": "1.png", "text": "a"}}\n{{"file_name": "{name}", "text": "b"}}\n'
    )
    source = read_folder(tmp_path, 0)
    (lost,) = [one for one in source.candidates if one.path != "1.png"]
    assert lost.problem is not None and lost.problem[0] in ("missing_file", "outside_folder")
    for text in (lost.path, lost.problem[1], *source.told.lines()):
        text.encode()
    assert len(lost.problem[1]) < 400


@pytest.mark.parametrize("caption", [r"half \ud83d pair", r"two\u2028lines\u0007", "x" * 100_000])
def test_captions_arrive_as_one_line_of_text_that_can_be_written(tmp_path, caption):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": "{caption}"}}\n')
    (one,) = read_folder(tmp_path, 0).candidates
    assert one.caption and one.caption.encode().decode().isprintable()


def test_columns_with_odd_names_are_no_columns(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "text": "a", "\\ud800": 1, "": 2, "' + "k" * 9_999 + '": 3}\n'
    )
    source = read_folder(tmp_path, 0)
    assert source.candidates[0].caption == "a"
    assert source.told.found[1] == "metadata.jsonl: rows about images, by the columns file_name, text"
