"""Facts about the monitor: its test keeps its level, sees what changed, and is not fooled by what callers ask for."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from registry_workspace import CLASSES, SIDE, write_small_bundle

from mlx_tasks.errors import DataError
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.monitoring.monitor import Rules, compare, monitor
from mlx_tasks.monitoring.two_sample import permutation_test
from mlx_tasks.monitoring.window import Window, read_window
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.png import encode_png
from mlx_tasks.registry.reference import make_reference, read_reference, write_reference

# ---- the two-sample test


def mmd2_by_loops(a, b, h2):
    def k(x, y):
        return np.exp(-((x - y) ** 2).sum() / (2 * h2))

    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def median_h2(a, b):
    rows = np.concatenate([a, b])
    return np.median([((rows[i] - rows[j]) ** 2).sum() for i, j in itertools.combinations(range(len(rows)), 2)]) / 2


def test_the_statistic_is_the_unbiased_mmd_of_its_formula():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(7, 3)), generator.normal(0.5, 2, size=(5, 3))
    found = permutation_test(a, b, 19, seed=0)
    assert found.mmd2 == pytest.approx(mmd2_by_loops(a, b, median_h2(a, b)), rel=1e-9)


def test_the_p_value_is_that_of_all_exchanges():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(5, 2)), generator.normal(1.0, 1, size=(4, 2))
    rows, h2 = np.concatenate([a, b]), median_h2(a, b)
    observed = mmd2_by_loops(a, b, h2)
    chosen = list(itertools.combinations(range(9), 5))
    larger = [
        mmd2_by_loops(rows[list(first)], rows[[i for i in range(9) if i not in first]], h2) >= observed - 1e-12
        for first in chosen
    ]
    exact = np.mean(larger)
    found = permutation_test(a, b, 20_000, seed=0).p_value
    assert 0.02 < exact < 0.9
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_false_alarms_come_as_often_as_the_level_says(level):
    generator = np.random.default_rng(int(level * 1000))
    trials, alarms = 600, 0
    for trial in range(trials):
        a, b = generator.gamma(2.0, size=(30, 4)), generator.gamma(2.0, size=(20, 4))
        alarms += permutation_test(a, b, 99, seed=trial).p_value <= level
    spread = np.sqrt(level * (1 - level) / trials)
    assert abs(alarms / trials - level) < 4 * spread


def test_a_shift_and_a_change_of_spread_are_seen():
    generator = np.random.default_rng(5)
    base = generator.normal(size=(100, 8))
    assert permutation_test(base, generator.normal(0.4, 1, (100, 8)), 499, 0).p_value <= 0.01
    assert permutation_test(base, generator.normal(0, 1.5, (100, 8)), 499, 0).p_value <= 0.01


def test_exchanges_within_a_class_ignore_the_mix_and_see_the_rest():
    generator = np.random.default_rng(6)

    def rows(counts, shift=0.0):
        labels = np.repeat([0, 1], counts)
        return generator.normal(labels[:, None] * 6 + shift, 1, (sum(counts), 4)), labels

    alarms = {"mixed": 0, "within": 0, "shifted": 0}
    for trial in range(60):
        (a, of_a), (b, of_b) = rows((40, 10)), rows((10, 40))
        alarms["mixed"] += permutation_test(a, b, 99, trial).p_value <= 0.05
        alarms["within"] += permutation_test(a, b, 99, trial, (of_a, of_b)).p_value <= 0.05
        alarms["shifted"] += permutation_test(a, rows((10, 40), 1.0)[0], 99, trial, (of_a, of_b)).p_value <= 0.05
    assert alarms["mixed"] == 60 and alarms["within"] <= 9 and alarms["shifted"] >= 55


def test_equal_sets_and_constant_rows_are_no_drift():
    rows = np.random.default_rng(0).normal(size=(20, 3))
    assert permutation_test(rows, rows, 99, 0).p_value > 0.5
    assert permutation_test(np.ones((5, 2)), np.ones((6, 2)), 99, 0).p_value == 1.0


@pytest.mark.parametrize(
    ("a", "b", "permutations", "message"),
    [
        (np.ones((1, 2)), np.ones((3, 2)), 99, "N >= 2"),
        (np.ones((3, 2)), np.ones((3, 4)), 99, "one D"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), 99, "NaN"),
        (np.ones((3, 2)), np.ones((3, 2)), 5, "19 permutations"),
    ],
)
def test_what_cannot_be_tested_is_named(a, b, permutations, message):
    with pytest.raises(ValueError, match=message):
        permutation_test(a, b, permutations, 0)


# ---- windows


def put(folder, name, pixels, **text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode_png(pixels, text))


def test_a_window_reads_classes_and_counts_what_is_no_image_of_its_shape(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
    put(tmp_path / "in", "a.png", pixels, **{"class": "one"})
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:40])
    (tmp_path / "in" / "c.png").write_text("not an image")
    Image.new("L", (SIDE + 1, SIDE)).save(tmp_path / "in" / "d.png")
    (tmp_path / "in" / "notes.txt").write_text("ignored")
    window = read_window(tmp_path, SIDE, 1)
    assert np.array_equal(window.images[0], pixels) and window.classes == ("one",)
    assert sorted(window.unreadable) == ["in/b.png", "in/c.png", "in/d.png"]
    assert "9 x 8 pixels" in window.unreadable["in/d.png"]
    with pytest.raises(DataError, match="no folder"):
        read_window(tmp_path / "nowhere", SIDE, 1)


def test_a_window_is_the_newest_images(tmp_path):
    import os

    for i in range(5):
        put(tmp_path, f"{i}.png", np.full((SIDE, SIDE, 1), i, np.uint8))
        os.utime(tmp_path / f"{i}.png", (i, i))
    assert read_window(tmp_path, SIDE, 1, most=2).images[:, 0, 0, 0].tolist() == [3, 4]


# ---- the monitor


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A bundle with a reference of 150 drawn images, beside 100 real ones."""
    folder = tmp_path_factory.mktemp("registered") / "bundle"
    write_small_bundle(folder)
    bundle = read_bundle(folder)
    real = draw(bundle, [i % 3 for i in range(100)], list(range(50_000, 50_100)))
    noisy = np.clip(real + np.random.default_rng(0).normal(0, 12, real.shape), 0, 255).astype(np.uint8)
    write_reference(folder, make_reference(bundle, noisy, 150))
    return folder, bundle


def served(bundle, labels, first_seed=0):
    images = draw(bundle, labels, list(range(first_seed, first_seed + len(labels))))
    return Window(images, tuple(CLASSES[label] for label in labels), {})


def test_a_reference_is_read_as_it_was_written(registered):
    folder, _ = registered
    reference = read_reference(folder)
    assert reference.generated.shape == (150, 64) and 0 < reference.frechet_distance < 10
    with pytest.raises(DataError, match="no readable reference"):
        read_reference(folder.parent)


def test_images_of_the_bundle_raise_no_alert_whatever_classes_were_asked_for(registered):
    folder, bundle = registered
    for labels in ([i % 3 for i in range(60)], [0] * 50 + [1] * 5):
        report = compare(served(bundle, labels), read_reference(folder), list(CLASSES), Rules())
        assert report["alerts"] == [] and report["measured"]["matched_by_class"]
        assert report["measured"]["compared"][0] == report["measured"]["compared"][1]


def test_another_models_images_are_drift(registered, tmp_path):
    folder, _ = registered
    write_small_bundle(tmp_path / "other", seed=11)
    window = served(read_bundle(tmp_path / "other"), [i % 3 for i in range(60)])
    report = compare(window, read_reference(folder), list(CLASSES), Rules())
    (drift, *_) = report["alerts"]
    assert drift["name"] == "drift" and drift["value"] <= drift["limit"] == 0.01
    json.dumps(report, allow_nan=False)


def test_bad_images_are_an_alert_of_quality(registered):
    folder, bundle = registered
    good = served(bundle, [i % 3 for i in range(60)])
    noise = np.random.default_rng(0).integers(0, 256, good.images.shape, dtype=np.uint8)
    report = compare(Window(noise, good.classes, {}), read_reference(folder), list(CLASSES), Rules())
    assert {alert["name"] for alert in report["alerts"]} == {"drift", "quality"}
    measured = report["measured"]
    assert measured["frechet_distance"] > 1.5 * measured["registered_frechet_distance"]


def test_few_images_measure_nothing_and_unreadable_files_are_told(registered):
    folder, bundle = registered
    window = served(bundle, [0] * 10)
    broken = Window(window.images, window.classes, {"x.png": "truncated"})
    report = compare(broken, read_reference(folder), list(CLASSES), Rules())
    assert [alert["name"] for alert in report["alerts"]] == ["unreadable"]
    assert report["measured"] == {"images": 10, "unreadable": 1, "skipped": "fewer than 32 readable images"}


def test_images_that_name_no_class_are_compared_as_they_are(registered):
    folder, bundle = registered
    window = served(bundle, [i % 3 for i in range(60)])
    report = compare(Window(window.images, ("",) * 60, {}), read_reference(folder), list(CLASSES), Rules())
    assert report["alerts"] == [] and report["measured"]["compared"] == [60, 150]


def test_a_level_that_the_permutations_cannot_reach_is_refused():
    with pytest.raises(ValueError, match="level must lie in"):
        Rules(level=0.001, permutations=499)


def test_the_command_prints_the_alerts_as_json(registered, tmp_path):
    folder, bundle = registered
    window = served(bundle, [i % 3 for i in range(40)])
    for i, (pixels, name) in enumerate(zip(window.images, window.classes, strict=True)):
        put(tmp_path, f"{i}.png", pixels, **{"class": name})
    command = [sys.executable, "-m", "mlx_tasks", "monitor", "--window", str(tmp_path), "--bundle", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["alerts"] == [] and report["measured"]["images"] == 40
    assert report == monitor(tmp_path, folder, Rules()) | {"name": "bundle", "version": ""}
    done = subprocess.run([*command, "--level", "0"], capture_output=True, text=True)
    assert done.returncode == 10 and "level must lie in" in done.stderr
