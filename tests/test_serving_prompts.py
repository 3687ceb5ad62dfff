"""Facts about prompts: a caption names one class, or is told which there are."""

import pytest

from mlx_tasks.errors import DataError
from mlx_tasks.serving.prompts import ANY_CLASS, class_of


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
    ],
)
def test_a_prompt_names_one_class(prompt, expected):
    names = ("zero", "one", "two", "sea lion", "lion", "vingt-deux", "三")
    assert class_of(prompt, names) == expected


@pytest.mark.parametrize(
    ("prompt", "message"), [("one or two", "'one' and 'two'"), ("stone", "zero, one, two"), ("", "got ''")]
)
def test_a_prompt_that_names_none_or_two_is_told(prompt, message):
    with pytest.raises(DataError, match=message):
        class_of(prompt, ("zero", "one", "two"))


def test_any_prompt_will_do_for_a_bundle_without_classes():
    assert class_of("whatever", ()) == ANY_CLASS
