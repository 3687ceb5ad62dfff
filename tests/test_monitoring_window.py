"""Facts about the window: it is bounded, survives what is killed, and costs rows rather than answers."""

import numpy as np
import pytest

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.metrics.scalars import picture_numbers
from mlx_tasks.monitoring import window
from mlx_tasks.monitoring.window import Made, Recorder, features_of, read_window
from mlx_tasks.registry.png import decode_png


def images(n, seed=0, channels=1):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)


def made(n=2, at=100.0, seed=0, **more):
    told = {"model": "m", "version": "1", "digest": "d", "classes": ("one",) * n, "seeds": tuple(range(n)), "nfe": 4}
    return Made(200, images(n, seed), **{**told, "plan": "own", "at": at, **more})


def record(folder, requests, **options):
    recorder = Recorder(folder, **options)
    recorder.start()
    for request in requests:
        recorder.add(request)
    recorder.stop()
    recorder.join(30)
    return recorder


def test_a_row_tells_what_was_made(tmp_path):
    record(tmp_path, [made(2, waited_ms=3.0, drawn_ms=9.0), Made(503, at=101.0)], thumb_every=2)
    rows = read_window(tmp_path)
    assert rows["status"].tolist() == [200, 200, 503] and rows["seed"].tolist()[:2] == [0, 1]
    assert rows["class"].tolist()[:2] == ["one", "one"] and rows["drawn_ms"].tolist()[:2] == [9.0, 9.0]
    np.testing.assert_allclose(features_of(rows[:2]), RandomConvFeatures(1)(images(2)), rtol=1e-6)
    for name, values in picture_numbers(images(2)).items():
        assert rows[name].tolist()[:2] == pytest.approx(values.tolist())
    np.testing.assert_array_equal(decode_png(rows["thumbnail"][0]), images(2)[0])
    assert rows["thumbnail"].isna().tolist() == [False, True, True]


def test_the_window_is_bounded_and_keeps_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(window, "PART_ROWS", 10)
    record(tmp_path, [made(5, at=float(i), seed=i) for i in range(40)], most_rows=50)
    rows = read_window(tmp_path)
    assert 50 <= len(rows) <= 60 and rows["at"].max() == 39.0 and rows["at"].min() >= 28.0
    assert read_window(tmp_path, most=7)["at"].min() >= 38.0
    assert read_window(tmp_path, since=36.5)["at"].unique().tolist() == [37.0, 38.0, 39.0]
    record(tmp_path, [made(3, at=50.0)], most_rows=50)  # a restart appends
    assert read_window(tmp_path)["at"].max() == 50.0


def test_what_waits_to_be_recorded_is_counted_in_images(tmp_path, monkeypatch):
    monkeypatch.setattr(window, "QUEUED_IMAGES", 10)
    recorder = Recorder(tmp_path)
    for _ in range(4):
        recorder.add(made(4))  # nobody takes them yet: two fit, two do not
    assert recorder.unrecorded == 8
    recorder.add(Made(503))  # a refusal is a row too
    recorder.add(made(2))
    assert recorder.unrecorded == 10
    recorder.start()
    recorder.stop()
    recorder.join(30)
    assert len(read_window(tmp_path)) == 9
    recorder = record(tmp_path, [made(10)])  # what was taken has made room
    assert recorder.unrecorded == 0


def test_a_part_that_was_cut_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(window, "PART_ROWS", 1)
    record(tmp_path, [made(1, at=float(i)) for i in range(3)])
    parts = sorted(tmp_path.glob("part-*.parquet"))
    parts[1].write_bytes(parts[1].read_bytes()[:200])
    (tmp_path / "part-tmp").write_text("half")
    assert read_window(tmp_path)["at"].tolist() == [0.0, 2.0]


def test_features_stop_at_their_allowance_and_rows_go_on(tmp_path):
    record(tmp_path, [made(4, at=float(i)) for i in range(10)], features_per_s=10.0)
    rows = read_window(tmp_path)
    assert len(rows) == 40 and 8 <= rows["features"].notna().sum() <= 28
    assert rows["brightness"].notna().all()


def test_a_disk_that_takes_nothing_costs_rows_only(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(window, "atomic_write_bytes", full)
    recorder = record(tmp_path, [made(2)])
    assert recorder.unrecorded == 2 and not list(tmp_path.iterdir())


def test_no_window_is_named_and_an_empty_one_is_empty(tmp_path):
    with pytest.raises(DataError, match="no window at"):
        read_window(tmp_path / "nowhere")
    assert len(read_window(tmp_path)) == 0


def test_picture_numbers_are_what_they_say():
    grey = np.full((1, 8, 8, 3), 51, np.uint8)
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    board = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    numbers = {name: values for name, values in picture_numbers(grey).items()}
    assert numbers == {
        "brightness": [pytest.approx(0.2)],
        "contrast": [pytest.approx(0)],
        "colourfulness": [0],
        "sharpness": [0],
    }
    # mean of rg is 1, of yb 1/2, no spread: 0.3 sqrt(1 + 1/4)
    assert picture_numbers(red)["colourfulness"][0] == pytest.approx(0.3 * np.sqrt(1.25))
    checks = picture_numbers(board)
    assert checks["contrast"][0] == pytest.approx(0.5) and checks["sharpness"][0] == pytest.approx(4.0)
