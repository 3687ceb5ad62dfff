"""Facts about prompts: a name counts in any spelling, a caption names one class, or is told which there are."""

import itertools

import pytest

from mlx_tasks.data import class_names
from mlx_tasks.data.class_names import class_caption, name_key
from mlx_tasks.data.imagefolder import read_folder
from mlx_tasks.errors import DataError
from mlx_tasks.registry.png import encode_png
from mlx_tasks.serving.prompts import ANY_CLASS, ClassNames

SPELLINGS = [
    "golden_retriever",
    "golden-retriever",
    "Golden Retriever",
    "GoldenRetriever",
    "goldenRetriever",
    "GOLDEN_RETRIEVER",
    "goldenretriever",
    "golden  retriever ",
    "golden‑retriever",
    "golden\u00a0retriever",
    "ｇｏｌｄｅｎ＿ｒｅｔｒｉｅｖｅｒ",
]


@pytest.mark.parametrize("mark", ["'", "\u2018", "\u2019", "\u02bc", "\uff07"])
def test_an_apostrophe_counts_in_any_form(mark):
    names = ClassNames(["bird", "bird's nest", "nest"])
    assert names.named(f"bird{mark}s nest") == names.in_prompt(f"a photo of a bird{mark}s nest") == 1


@pytest.mark.parametrize(("label", "asked"), [*itertools.permutations(SPELLINGS, 2)])
def test_a_name_counts_in_any_spelling(label, asked):
    names = ClassNames(["cat", label, "retriever"])
    assert names.named(asked) == 1
    assert names.in_prompt(f"a photo of a {asked}, sitting") == 1


@pytest.mark.parametrize(
    "label",
    [
        *SPELLINGS,
        "vingt-deux",
        "McLaren",
        "naïve",
        "Straße",
        "手書き",
        "c++",
        "n02099601",
        "ＡＢＣ",
        "mañana_2",
        "3",
        "-",
        "_x",
    ],
)
def test_a_class_own_training_caption_names_it(label):
    """What training calls a class where its images have no captions is what serving finds it by."""
    names = ClassNames(["other", label])
    assert names.in_prompt(class_caption(label)) == 1
    assert name_key(class_caption(label)) == name_key(label)


def test_the_captions_that_a_dataset_gets_are_these(tmp_path):
    import numpy as np

    for number, name in enumerate(("golden_retriever", "GermanShepherd", "t-shirt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(encode_png(np.full((8, 8, 1), number, np.uint8)))
    captions = {one.label: one.caption for one in read_folder(tmp_path, 0).candidates}
    assert captions == {name: class_caption(name) for name in captions}
    assert sorted(captions.values()) == ["German Shepherd", "golden retriever", "t shirt"]


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        ("golden_retriever", "golden retriever"),
        ("GoldenRetriever", "Golden Retriever"),
        ("golden-retriever", "golden retriever"),
        ("McLaren", "McLaren"),
        ("iPhone", "iPhone"),
        ("NASA", "NASA"),
        ("class__1", "class 1"),
        ("-", "-"),
    ],
)
def test_a_caption_is_the_names_words(label, caption):
    assert class_caption(label) == caption


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("one", 1),
        ("  ONE\n", 1),
        ("a handwritten one, in ink", 1),
        ("stones are no number but zero is", 0),
        ("a sea lion on a rock", 3),
        ("a lion on a rock", 4),
        ("écrit à la main: VINGT-DEUX", 5),
        ("vingt-deux", 5),
        ("手書きの三です", 6),
        ("ｚｅｒｏ", 0),
        ("one and ONE", 1),
        ("手書きのone", 1),
        ("a caterpillar", 8),
        ("a cat", 7),
        ("the cat's bed", 7),
        ("a polar_bear", 10),
        ("polar bears and a bear", 9),
        ("#10", 11),
    ],
)
def test_a_prompt_names_one_class(prompt, expected):
    names = [
        "zero",
        "one",
        "two",
        "sea lion",
        "lion",
        "vingt-deux",
        "三",
        "cat",
        "caterpillar",
        "bear",
        "polar bear",
        "10",
    ]
    assert ClassNames(names).in_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("one or two", "'one' and 'two'"),
        ("stone", "zero, one, two"),
        ("", "got ''"),
        ("a bear beside a polar bear", "'bear' and 'polar bear'"),
        ("a polar bear cub", "'polar bear' and 'bear cub'"),
    ],
)
def test_a_prompt_that_names_none_or_two_is_told(prompt, message):
    with pytest.raises(DataError, match=f"^prompt: .*{message}"):
        ClassNames(("zero", "one", "two", "bear", "polar bear", "bear cub")).in_prompt(prompt)


def test_any_prompt_will_do_for_a_bundle_without_classes():
    assert ClassNames(()).in_prompt("whatever") == ANY_CLASS


def test_names_that_are_numbers_are_names_and_no_positions():
    names = ClassNames(["7", "10", "1", "0"])
    assert [names.named(text) for text in ("7", "10", "1", "0")] == [0, 1, 2, 3]
    assert names.in_prompt("a handwritten 1") == 2 and names.in_prompt("10") == 1
    for absent in ("2", "3", "01", "-1"[1:] + "1", "1.0"):
        with pytest.raises(DataError, match=r"7, 10, 1, 0"):
            names.named(absent)


def test_of_equal_names_the_one_that_is_spelt_so_is_meant():
    """Handwritten letters have both cases."""
    names = ClassNames(["A", "a", "B", "tea_cup", "Teacup"])
    assert (names.named("A"), names.named("a"), names.named("b")) == (0, 1, 2)
    assert names.in_prompt("Teacup") == 4 and names.in_prompt("my tea_cup!") == 3
    with pytest.raises(DataError, match="may be 'tea_cup', 'Teacup': spell one of them as it stands here"):
        names.named("tea cup")
    with pytest.raises(DataError, match="'tea_cup' and 'Teacup'"):
        names.in_prompt("a TEA CUP")


def test_a_classs_own_caption_names_it_though_its_name_is_not_in_it():
    names = ClassNames(["n02099601", "n02123045", "x", "y"], ["a photo of a golden retriever", "a cat", "same", "same"])
    assert names.in_prompt("A photo of a golden-retriever") == 0 and names.in_prompt("a cat") == 1
    with pytest.raises(DataError, match="n02099601"):
        names.in_prompt("same")


class Untouched(tuple):
    """Names that may be counted and not gone through."""

    def __iter__(self):
        raise AssertionError("somebody goes through all names")

    __contains__ = index = __iter__


def test_a_look_up_goes_through_no_list_of_classes(monkeypatch):
    names = ClassNames([f"class of number {k}" for k in range(10_000)])
    folded = []
    monkeypatch.setattr(class_names.unicodedata, "normalize", lambda form, text: folded.append(text) or text)
    names.names = Untouched(names.names)
    assert names.in_prompt("a picture of class of number 9876, please") == 9876
    assert names.named("Class_of_number_77") == 77 and len(folded) == 4


def test_messages_stay_short_whatever_the_names():
    names = ClassNames([f"{'long ' * 40}{k}" for k in range(10_000)])
    for ask in (names.named, names.in_prompt):
        with pytest.raises(DataError) as refused:
            ask("x" * 900)
        assert len(str(refused.value)) < 1500
