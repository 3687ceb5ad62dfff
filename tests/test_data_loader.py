"""Batches come from the step alone; pixels convert there and back."""

import json

import numpy as np
import pandas as pd
import pytest

from mlx_tasks.data.loader import batch_indices, load_split, to_float, to_uint8
from mlx_tasks.errors import DataError


@pytest.mark.parametrize(("count", "batch_size"), [(10, 10), (10, 5), (10, 3), (7, 16), (1, 4)])
def test_every_image_is_seen_once_before_any_is_seen_twice(count, batch_size):
    stream = np.concatenate([batch_indices(count, batch_size, 0, step) for step in range(40)])
    assert len(stream) == 40 * batch_size
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_differ_and_seeds_differ():
    first, second, other = (batch_indices(100, 100, seed, step) for seed, step in ((0, 0), (0, 1), (1, 0)))
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


def test_a_batch_needs_no_batch_before_it():
    far = batch_indices(1000, 64, 5, 12_345)
    for step in range(12_340, 12_346):
        last = batch_indices(1000, 64, 5, step)
    np.testing.assert_array_equal(far, last)


@pytest.mark.parametrize(("count", "batch_size", "step"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_batches_are_refused(count, batch_size, step):
    with pytest.raises(ValueError, match="count >= 1, batch_size >= 1 and step >= 0"):
        batch_indices(count, batch_size, 0, step)


def test_pixels_go_to_floats_and_back():
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert (floats.dtype, floats.min(), floats.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(to_uint8(floats), values)
    assert to_uint8(np.array([-7.0, 7.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="1 of 2 pixels are not finite"):
        to_uint8(np.array([0.0, np.nan]))


@pytest.fixture
def dataset(tmp_path):
    """Six images whose pixels say their row; the manifest stands in another order and has a refused row."""
    order = [4, -1, 0, 5, 1, 3, 2]
    splits = {0: "train", 1: "train", 2: "train", 3: "validation", 4: "test", 5: "test", -1: "quarantine"}
    frame = pd.DataFrame(
        {
            "index": order,
            "class_index": [max(i, -1) % 2 if i >= 0 else -1 for i in order],
            "caption": [f"row {i}" for i in order],
            "split": [splits[i] for i in order],
        }
    )
    frame.to_parquet(tmp_path / "manifest.parquet")
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "8.npy", np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2))
    (tmp_path / "classes.json").write_text(json.dumps(["even", "odd"]))
    return tmp_path


def test_a_split_is_its_rows_in_order_with_their_labels_and_captions(dataset):
    train = load_split(dataset, 8, "train")
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert (train.labels.tolist(), train.labels.dtype) == ([0, 1, 0], np.int32)
    assert train.captions == ["row 0", "row 1", "row 2"]
    assert train.class_names == ["even", "odd"]
    assert [len(load_split(dataset, 8, split)) for split in ("validation", "test")] == [1, 2]
    assert load_split(dataset, 8, "test").images[:, 3, 3, 0].tolist() == [4, 5]


def test_a_split_is_a_view_of_the_file(dataset):
    images = load_split(dataset, 8, "train").images
    assert type(images) is np.ndarray
    assert not images.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_what_is_not_there_is_named(dataset):
    with pytest.raises(DataError, match=r"no images of side 16, only \[8\]"):
        load_split(dataset, 16, "train")
    with pytest.raises(ValueError, match="'quarantine'"):
        load_split(dataset, 8, "quarantine")
    np.save(dataset / "images" / "8.npy", np.zeros((5, 8, 8, 1), np.uint8))
    with pytest.raises(DataError, match="holds 5 images and the manifest 6"):
        load_split(dataset, 8, "train")
