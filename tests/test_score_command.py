"""`mlx-tasks score` on real files: against numpy's numbers, streaming, and what it says of bad input."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlx_tasks.cli import main
from mlx_tasks.metrics import score_sets
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.image_files import ImageFiles
from mlx_tasks.metrics.kid import kid
from mlx_tasks.metrics.random_conv import RandomConvFeatures


def digits(start, stop):
    return np.round(load_digits().images[start:stop] / 16 * 255).astype(np.uint8)[..., None]


@pytest.fixture
def folders(tmp_path):
    """200 digits as PNG files in subfolders, and 150 others as one array."""
    for i, image in enumerate(digits(0, 200)):
        place = tmp_path / "drawn" / str(i % 3)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f"{i:04}.png")
    np.save(tmp_path / "real.npy", digits(200, 350))
    return tmp_path


def scored(capsys, *arguments):
    assert main(["score", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_scores_are_those_of_all_features_at_once(folders, capsys):
    told = scored(capsys, folders / "drawn", "--against", folders / "real.npy", "--batch", 32)
    space = RandomConvFeatures(3)
    a, b = (space(np.repeat(x, 3, -1)) for x in (digits(0, 200), digits(200, 350)))
    assert told["counts"] == {"images": 200, "against": 150}
    assert told["scores"]["frechet_distance"]["value"] == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert told["scores"]["kernel_distance"]["value"] == pytest.approx(kid(a, b).value, rel=1e-6)
    assert set(told["scores"]) >= {"precision", "recall", "density", "coverage", "frechet_distance_infinity"}
    interval = told["scores"]["frechet_distance"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert any("the counts differ (200 and 150)" in note for note in told["notes"])
    assert any("on 150 of each" in note for note in told["notes"])


def test_saved_statistics_serve_as_the_real_side_and_large_sets_keep_no_features(folders, capsys, monkeypatch):
    whole = scored(capsys, folders / "drawn", "--against", folders / "real.npy", "--save-statistics", folders / "kept")
    again = scored(capsys, folders / "drawn", "--against", folders / "kept")
    distance = whole["scores"]["frechet_distance"]["value"]
    assert again["scores"] == {"frechet_distance": {"value": pytest.approx(distance), "low": None, "high": None}}
    monkeypatch.setattr(score_sets, "KEPT", 100)
    streamed = scored(capsys, folders / "drawn", "--against", folders / "real.npy")
    assert list(streamed["scores"]) == ["frechet_distance"] and "left out" in streamed["notes"][-1]
    assert streamed["scores"]["frechet_distance"]["value"] == pytest.approx(distance)


def test_few_images_say_what_is_still_valid(folders, capsys):
    told = scored(capsys, folders / "drawn", "--against", folders / "real.npy", "--count", 40)
    assert told["counts"] == {"images": 40, "against": 40}
    assert "40 images span at most 39 of 64 features" in told["notes"][0] and "unbiased and valid" in told["notes"][0]


def test_a_table_is_printed_for_people(folders, capsys):
    assert main(["score", str(folders / "drawn"), "--against", str(folders / "real.npy"), "--count", "50"]) == 0
    printed = capsys.readouterr()
    assert "50 images against 50, by random_conv" in printed.out and "frechet distance" in printed.out
    assert "images: 50/50 images" in printed.err


def test_a_broken_file_stops_it_by_name_or_is_named_and_left_out(folders, capsys):
    (folders / "drawn" / "0" / "zz.png").write_bytes((folders / "drawn" / "0" / "0000.png").read_bytes()[:40])
    arguments = ["score", str(folders / "drawn"), "--against", str(folders / "real.npy")]
    assert main(arguments) != 0
    assert "zz.png does not decode" in capsys.readouterr().err
    told = scored(capsys, *arguments[1:], "--skip-broken")
    assert told["counts"]["images"] == 200 and "1 files of" in told["notes"][-1] and "zz.png" in told["notes"][-1]


def test_pictures_are_read_as_validate_reads_them(tmp_path):
    """Upright by EXIF, transparency on white, deep greys by their range, AppleDouble files passed over."""
    upright = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    turned, exif = Image.fromarray(np.rot90(upright)), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "1.png", exif=exif)
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7" + bytes(40))
    Image.new("RGBA", (32, 16), (9, 9, 9, 0)).save(tmp_path / "2.png")
    Image.fromarray(np.full((16, 32), 65535, np.uint16)).save(tmp_path / "3.png")
    (batch,) = ImageFiles(tmp_path).batches(8)
    np.testing.assert_array_equal(batch[0], upright)
    assert (batch[1] == 255).all() and (batch[2] == 255).all()


def test_a_count_is_spread_over_classes_by_the_seed(tmp_path):
    for kind, count in (("cat", 20), ("dog", 20), ("hen", 40)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("L", (8, 8), number).save(tmp_path / kind / f"{number}.png")
    taken = [ImageFiles(tmp_path, count=8, seed=seed).names for seed in (0, 0, 1)]
    assert taken[0] == taken[1] != taken[2]
    for names in taken:
        assert [sum(name.startswith(kind) for name in names) for kind in ("cat", "dog", "hen")] == [2, 2, 4]
    more = ImageFiles(tmp_path, count=16, seed=0).names
    assert set(taken[0]) < set(more)
    np.save(tmp_path / "all.npy", np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1))
    assert ImageFiles(tmp_path / "all.npy", count=5).names != [f"{row:09}" for row in range(5)]


def test_a_link_that_leaves_the_folder_is_not_scored(folders, capsys):
    Image.new("L", (8, 8)).save(folders / "elsewhere.png")
    (folders / "drawn" / "0" / "zz.png").symlink_to(folders / "elsewhere.png")
    assert main(["score", str(folders / "drawn"), "--against", str(folders / "real.npy")]) != 0
    assert "outside_folder: a link to the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (folder / "empty").mkdir(), "has 0 image(s)"),
        (lambda folder: np.save(folder / "empty.npy", np.zeros((4, 8, 8, 3))), "float64 (4, 8, 8, 3)"),
        (lambda folder: np.save(folder / "empty.npy", np.zeros((4, 8, 8, 4), np.uint8)), "uint8 (4, 8, 8, 4)"),
        (lambda folder: np.save(folder / "empty.npy", np.zeros((1, 8, 8, 3), np.uint8)), "has 1 image(s)"),
        (lambda folder: None, "neither a folder of images nor a .npy file"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(folders, capsys, make, said):
    make(folders)
    path = folders / "empty.npy" if (folders / "empty.npy").exists() else folders / "empty"
    assert main(["score", str(path), "--against", str(folders / "real.npy")]) != 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--count", 0, "--count must be at least 2, got 0"),
        ("--count", -3, "--count must be at least 2, got -3"),
        ("--resolution", 0, "--resolution must be at least 1, got 0"),
        ("--batch", 0, "--batch must be at least 1, got 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_the_rule(folders, capsys, option, value, said):
    assert main(["score", str(folders / "drawn"), "--against", str(folders / "real.npy"), option, str(value)]) != 0
    assert said in capsys.readouterr().err


def test_what_is_passed_over_and_what_was_asked_in_vain_is_told(folders, capsys):
    (folders / "drawn" / "0" / "notes.txt").write_text("x")
    told = scored(capsys, folders / "drawn", "--against", folders / "real.npy", "--count", 1000)
    assert f"passed over in {folders / 'drawn'}: 1 .txt" in told["notes"]
    assert f"{folders / 'drawn'} has 200 images, fewer than --count 1000: all are taken" in told["notes"]
    (folders / "phone").mkdir()
    (folders / "phone" / "1.mov").write_bytes(b"x")
    assert main(["score", str(folders / "phone"), "--against", str(folders / "real.npy")]) != 0
    assert "has 0 image(s): a score needs at least 2. passed over in" in capsys.readouterr().err


def test_extractors_without_weights_or_of_unknown_names_are_errors(folders, capsys, monkeypatch):
    monkeypatch.delenv("MLX_TASKS_WEIGHTS", raising=False)
    against = ["--against", str(folders / "real.npy")]
    for name, said in (
        ("inception_v3_fid", "get pt_inception-2015-12-05"),
        ("vgg", "there are: random_conv, inception_v3_fid"),
        ("lpips_alex", "scores pairs of images"),
    ):
        assert main(["score", str(folders / "drawn"), *against, "--extractor", name]) != 0
        assert said in capsys.readouterr().err


def test_images_of_mixed_sizes_need_a_resolution(folders, capsys):
    Image.new("RGB", (20, 12)).save(folders / "drawn" / "0" / "other.png")
    assert main(["score", str(folders / "drawn"), "--against", str(folders / "real.npy")]) != 0
    assert "give one size to all (--resolution)" in capsys.readouterr().err
    told = scored(capsys, folders / "drawn", "--against", folders / "real.npy", "--resolution", 8)
    assert told["counts"]["images"] == 201
