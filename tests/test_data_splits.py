"""Splits: exact shares, seeded, near duplicates together, stable, every class in train."""

import random
from collections import Counter

import pytest
from plain_splits import Member, columns, plain_splits

from mlx_tasks.data import splits as columnar
from mlx_tasks.errors import DataError

FRACTIONS = {"test": 0.25, "validation": 0.1}


def assign_splits(images: list[Member], fractions: dict[str, float], seed: int) -> columnar.Assignment:
    return columnar.assign_splits(columns(images, seed), fractions, seed)


def members(counts: dict[str, int]) -> list[Member]:
    """Images alone in their groups, `counts` of each class."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [Member(f"{label}-{i}", label, i) for i, label in enumerate(labels)]


def shares(images: list[Member], splits: list[str]) -> dict[tuple[str, str], int]:
    return Counter((image.stratum, split) for image, split in zip(images, splits, strict=True))


def test_shares_are_exact_where_they_are_whole():
    images = members({"a": 200, "b": 100, "c": 40})
    found = shares(images, assign_splits(images, FRACTIONS, seed=3).splits)
    assert found == {
        ("a", "train"): 130,
        ("a", "validation"): 20,
        ("a", "test"): 50,
        ("b", "train"): 65,
        ("b", "validation"): 10,
        ("b", "test"): 25,
        ("c", "train"): 26,
        ("c", "validation"): 4,
        ("c", "test"): 10,
    }


@pytest.mark.parametrize("counts", [{"a": 33, "b": 17, "c": 71}, {str(i): 5 for i in range(40)}, {"a": 7, "b": 900}])
def test_totals_are_the_whole_sets_share_and_each_class_is_within_one(counts):
    images = members(counts)
    found = shares(images, assign_splits(images, FRACTIONS, seed=0).splits)
    for split, fraction in FRACTIONS.items():
        assert sum(found[label, split] for label in counts) == round(fraction * len(images))
        for label, count in counts.items():
            assert abs(found[label, split] - fraction * count) < 1


def test_seed_decides_and_order_does_not():
    images = members({"a": 60, "b": 60})
    splits = dict(zip((i.key for i in images), assign_splits(images, FRACTIONS, 1).splits, strict=True))
    shuffled = random.Random(0).sample(images, len(images))
    again = dict(zip((i.key for i in shuffled), assign_splits(shuffled, FRACTIONS, 1).splits, strict=True))
    other = dict(zip((i.key for i in images), assign_splits(images, FRACTIONS, 2).splits, strict=True))
    assert again == splits
    changed = sum(other[key] != splits[key] for key in splits)
    # Two independent draws agree with chance 0.65^2 + 0.25^2 + 0.1^2 = 0.495.
    assert 0.3 * len(images) < changed < 0.7 * len(images)


def test_an_added_image_moves_at_most_a_few_others():
    images = members({"a": 200, "b": 200})
    before = assign_splits(images, FRACTIONS, 0).splits
    for number in range(20):
        grown = [*images, Member(f"new-{number}", "a", len(images))]
        after = assign_splits(grown, FRACTIONS, 0).splits[: len(images)]
        assert sum(x != y for x, y in zip(before, after, strict=True)) <= 4


def test_near_duplicates_stand_in_one_split_and_the_moved_are_counted():
    images = members({"a": 100, "b": 100})
    alone = assign_splits(images, FRACTIONS, 0)
    assert alone.moved == 0
    # One image of train and one of test turn out to be near duplicates.
    first, second = alone.splits.index("train"), alone.splits.index("test")
    paired = [Member(m.key, m.stratum, first if i == second else m.group) for i, m in enumerate(images)]
    together = assign_splits(paired, FRACTIONS, 0)
    assert together.splits[first] == together.splits[second]
    assert together.moved == 1
    assert Counter(together.splits) == Counter(alone.splits)


@pytest.mark.parametrize("seed", range(5))
def test_groups_never_span_splits_and_shares_hold(seed):
    rng = random.Random(seed)
    images = [Member(f"{i}", rng.choice("abc"), rng.randrange(300)) for i in range(600)]
    splits = assign_splits(images, FRACTIONS, seed).splits
    where: dict[int, set[str]] = {}
    for image, split in zip(images, splits, strict=True):
        where.setdefault(image.group, set()).add(split)
    assert all(len(found) == 1 for found in where.values())
    for split, fraction in FRACTIONS.items():
        assert splits.count(split) == pytest.approx(fraction * 600, abs=3)
    assert {image.stratum for image, split in zip(images, splits, strict=True) if split == "train"} == set("abc")


def test_a_class_of_one_image_is_in_train():
    images = members({"common": 99, "single": 1})
    splits = assign_splits(images, {"test": 0.45, "validation": 0.45}, 0).splits
    assert splits[-1] == "train"


def test_without_labels_there_is_one_stratum():
    images = [Member(str(i), "", i) for i in range(40)]
    assert Counter(assign_splits(images, FRACTIONS, 0).splits) == {"train": 26, "validation": 4, "test": 10}


def test_given_splits_hold_and_a_missing_one_is_carved_out_of_train():
    given = ["train"] * 80 + ["test"] * 20
    images = [Member(str(i), "ab"[i % 2], i, split) for i, split in enumerate(given)]
    splits = assign_splits(images, FRACTIONS, 0).splits
    assert splits[80:] == ["test"] * 20
    assert Counter(splits[:80]) == {"train": 70, "validation": 10}


def test_a_near_duplicate_across_given_splits_moves_to_train():
    given = ["train"] * 60 + ["validation"] * 20 + ["test"] * 20
    images = [Member(str(i), "", {99: 0, 98: 60}.get(i, i), split) for i, split in enumerate(given)]
    found = assign_splits(images, FRACTIONS, 0)
    assert (found.splits[0], found.splits[99]) == ("train", "train")  # train and test: to train
    assert (found.splits[60], found.splits[98]) == ("validation", "validation")  # validation and test: to validation
    assert found.moved == 2


def test_a_class_that_is_only_in_a_given_test_folder_is_an_error():
    images = [Member(str(i), "a", i, ["train", "test"][i % 2]) for i in range(40)] + [Member("x", "b", 40, "test")]
    with pytest.raises(DataError, match=r"every class must be in train.*'b'"):
        assign_splits(images, FRACTIONS, 0)


def test_an_empty_held_out_split_is_an_error():
    with pytest.raises(DataError, match="the validation split is empty with 3 images"):
        assign_splits(members({"a": 3}), {"test": 0.4, "validation": 0.1}, 0)


def test_an_empty_held_out_split_says_what_holds_the_images_in_train():
    with pytest.raises(DataError, match="the test split is empty with 6 images, of which 6 are alone in their class"):
        assign_splits(members(dict.fromkeys("abcdef", 1)), FRACTIONS, 0)
    alike = [Member(f"a-{i}", "a", 0) for i in range(30)]
    with pytest.raises(DataError, match="empty with 30 images, in 1 group of near duplicates: add images"):
        assign_splits(alike, FRACTIONS, 0)


@pytest.mark.parametrize("seed", range(40))
def test_columns_give_what_dicts_and_lists_give(seed):
    """Groups of all sizes that mix classes and given splits, equal keys, classes of one image."""
    rng = random.Random(seed)
    count, given = (
        rng.choice([5, 40, 400]),
        rng.choice([[None], [None, "train"], [None, "test", "train"], ["train", "validation", "test"]]),
    )
    classes = rng.choice(["a", "ab", "abcdefgh", "z9é"])
    images = [
        Member(str(rng.randrange(2 * count)), rng.choice(classes), rng.randrange(count), rng.choice(given))
        for _ in range(count)
    ]
    fractions = {"test": rng.choice([0.1, 0.25, 0.45]), "validation": rng.choice([0.1, 0.45])}
    found = columnar._assign(columns(images, seed), fractions, seed)
    assert [columnar.SPLITS[code] for code in found] == plain_splits(images, fractions, seed)
