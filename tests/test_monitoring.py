"""Facts about the monitor: it sees what got worse, says what to do again, and is not fooled by what callers ask for."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from registry_workspace import CLASSES, write_small_bundle

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json
from mlx_tasks.metrics.image_text import ImageTextConfig, ImageTextModel, image_text_scores, load_image_text
from mlx_tasks.metrics.image_text_training import train_image_text
from mlx_tasks.metrics.scalars import picture_numbers
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.monitoring.alerts import Ledger, alert, furthest, what_to_redo
from mlx_tasks.monitoring.monitor import LEDGER, Rules, Seen, compare, monitor
from mlx_tasks.monitoring.window import Made, Recorder, read_window
from mlx_tasks.registry.class_captions import ClassCaptions
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.reference import make_reference, read_reference, write_reference


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


def drawn(bundle, labels, first_seed=0):
    return draw(bundle, labels, list(range(first_seed, first_seed + len(labels))))


def seen(folder, images, labels):
    features = read_reference(folder).features(images)
    return Seen(features, tuple(CLASSES[label] for label in labels), picture_numbers(images))


def names(found):
    return {one.metric for one in found[0]}


def test_a_reference_is_read_as_it_was_written(registered):
    folder, bundle = registered
    reference = read_reference(folder)
    assert reference.generated.shape == (150, 64) and 0 < reference.frechet_distance < 10
    expected = picture_numbers(drawn(bundle, [i % 3 for i in range(150)], 1_000_003))
    for name, values in expected.items():
        np.testing.assert_allclose(reference.scalars[name], values, rtol=1e-6)
    with pytest.raises(DataError, match="no readable reference"):
        read_reference(folder.parent)


def test_images_of_the_bundle_raise_no_alert_whatever_classes_were_asked_for(registered):
    folder, bundle = registered
    for labels in ([i % 3 for i in range(60)], [0] * 50 + [1] * 10):
        alerts, measured = compare(
            seen(folder, drawn(bundle, labels), labels), read_reference(folder), list(CLASSES), Rules()
        )
        assert alerts == [] and measured["matched_by_class"]
        assert measured["compared"][0] == measured["compared"][1]


def test_another_models_images_are_drift(registered, tmp_path):
    folder, _ = registered
    write_small_bundle(tmp_path / "other", seed=11)
    labels = [i % 3 for i in range(60)]
    found = compare(
        seen(folder, drawn(read_bundle(tmp_path / "other"), labels), labels),
        read_reference(folder),
        list(CLASSES),
        Rules(),
    )
    assert "drift" in names(found)
    (drift,) = (one for one in found[0] if one.metric == "drift")
    assert drift.value <= drift.limit < 0.01 and drift.severity == "critical"
    json.dumps(found[1], allow_nan=False)


def test_noise_is_an_alert_of_quality_that_asks_for_the_whole_chain(registered):
    folder, bundle = registered
    labels = [i % 3 for i in range(60)]
    noise = np.random.default_rng(0).integers(0, 256, drawn(bundle, labels).shape, dtype=np.uint8)
    alerts, measured = compare(seen(folder, noise, labels), read_reference(folder), list(CLASSES), Rules())
    assert {"drift", "quality"} <= {one.metric for one in alerts}
    assert furthest([one.suggestion for one in alerts]) == "train"
    assert measured["frechet_distance"] > 1.5 * measured["registered_frechet_distance"]


def test_a_class_drawn_as_another_is_named(registered):
    folder, bundle = registered
    labels = [i % 3 for i in range(120)]
    alerts, _ = compare(
        seen(folder, drawn(bundle, [(i + 1) % 3 for i in range(120)]), labels),
        read_reference(folder),
        list(CLASSES),
        Rules(),
    )
    assert [one.metric for one in alerts] == ["class_drift"] and alerts[0].suggestion == "train"


def test_a_brighter_picture_is_told_by_its_name(registered):
    folder, bundle = registered
    labels = [i % 3 for i in range(60)]
    images = np.clip(drawn(bundle, labels).astype(int) + 40, 0, 255).astype(np.uint8)
    alerts, measured = compare(seen(folder, images, labels), read_reference(folder), list(CLASSES), Rules())
    assert "brightness" in {one.metric for one in alerts} and measured["stability_index"]["brightness"] > 0.25


def test_images_that_name_no_class_are_compared_as_they_are(registered):
    folder, bundle = registered
    one = seen(folder, drawn(bundle, [i % 3 for i in range(60)]), [0] * 60)
    alerts, measured = compare(
        Seen(one.features, ("",) * 60, one.scalars), read_reference(folder), list(CLASSES), Rules()
    )
    assert alerts == [] and measured["compared"] == [60, 150] and "class_drift" not in measured["p_values"]


# ---- images that shall show their class


@pytest.fixture(scope="module")
def captioned(registered, tmp_path_factory):
    """The bundle of `registered` with an image-text model that learned what its classes look like."""
    source, bundle = registered
    labels = [i % 3 for i in range(192)]
    images = drawn(bundle, labels, 70_000)
    model = ImageTextModel(ImageTextConfig(1, max_bytes=16), seed=0)
    captions = [f"a {CLASSES[label]}" for label in labels]
    for _ in train_image_text(model, images.astype(np.float32) / 127.5 - 1, captions, 150, 32, 0):
        pass
    folder = tmp_path_factory.mktemp("captioned") / "bundle"
    shutil.copytree(source, folder)
    real = drawn(bundle, labels[:100], 50_000)
    told = ClassCaptions(model, tuple(f"a {name}" for name in CLASSES))
    write_reference(folder, make_reference(bundle, real, 150, told))
    return folder, bundle


def test_the_image_text_score_of_a_window_is_that_of_its_images_and_their_classes(captioned, tmp_path):
    folder, bundle = captioned
    labels = [i % 3 for i in range(30)]
    serve(tmp_path, bundle, labels, at=1.0, folder=folder)
    rows = read_window(tmp_path)
    model = load_image_text(folder / "reference" / "image_text")
    captions = [f"a {CLASSES[label]}" for label in labels]
    expected = image_text_scores(model, drawn(bundle, labels).astype(np.float32) / 127.5 - 1, captions)
    np.testing.assert_allclose(rows["image_text_score"].to_numpy(float), expected, rtol=1e-5)
    reference = read_reference(folder)
    assert reference.scalars["image_text_score"].mean() > 1.2 * reference.captions.scores(
        drawn(bundle, labels), [(label + 1) % 3 for label in labels]
    ).mean()  # fmt: skip


def test_images_that_stop_agreeing_with_their_class_are_told_by_the_image_text_score(captioned, tmp_path):
    folder, bundle = captioned
    labels = [i % 3 for i in range(90)]
    serve(tmp_path, bundle, labels, at=1.0, folder=folder)
    sound = monitor(tmp_path, folder, Rules(), now=1.0)
    assert sound["alerts"] == [] and sound["measured"]["p_values"]["image_text_score"] > 0.01
    wrong = drawn(bundle, [(label + 1) % 3 for label in labels])
    serve(tmp_path, bundle, labels, at=2.0, folder=folder, images=wrong)
    report = monitor(tmp_path, folder, Rules(), now=2.0)
    assert {"class_drift", "image_text_score"} <= {one["metric"] for one in report["alerts"]}
    now, then = report["measured"]["means"]["image_text_score"]
    assert now < 0.9 * then and report["suggestion"] == "train"


def test_a_window_without_scores_is_compared_by_all_else(captioned, tmp_path):
    folder, bundle = captioned
    (tmp_path / "bundle" / "reference" / "image_text").mkdir(parents=True)
    serve(tmp_path / "w", bundle, [i % 3 for i in range(60)], at=1.0, folder=tmp_path / "bundle")  # a broken model
    report = monitor(tmp_path / "w", folder, Rules(), now=1.0)
    assert "drift" in report["measured"]["p_values"] and "image_text_score" not in report["measured"]["p_values"]
    (folder_without := tmp_path / "without").mkdir()
    shutil.copytree(folder, folder_without, dirs_exist_ok=True)
    broken = folder_without / "reference" / "image_text" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"model\.safetensors is not a safetensors file"):
        read_reference(folder_without)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": 0.001, "permutations": 499}, "level must lie in"),
        ({"min_images": 1}, "min_images"),
        ({"max_error_share": 0.0}, "max_error_share"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Rules(**wrong)


# ---- looks at a window


def serve(window, bundle, labels, at, first_seed=0, images=None, status=200, folder=None, **more):
    recorder = Recorder(window)
    recorder.start()
    if status == 200:
        images = drawn(bundle, labels, first_seed) if images is None else images
        told = {
            "model": "m",
            "version": "1",
            "digest": bundle.digest,
            "classes": tuple(CLASSES[k] for k in labels),
            "plan": "own",
            "bundle": folder,
        }
        recorder.add(Made(200, images, **{**told, "seeds": tuple(range(len(labels))), "nfe": 2, "at": at, **more}))
    else:
        for _ in range(len(labels)):
            recorder.add(Made(status, at=at))
    recorder.stop()
    recorder.join(30)


def test_every_image_is_looked_at_once_and_few_of_them_wait(registered, tmp_path):
    folder, bundle = registered
    labels = [i % 3 for i in range(40)]
    serve(tmp_path, bundle, labels, at=100.0)
    report = monitor(tmp_path, folder, Rules(), now=1000.0)
    assert "40 images since the last look" in report["measured"]["skipped"] and report["alerts"] == []
    serve(tmp_path, bundle, labels, at=200.0, first_seed=40)
    report = monitor(tmp_path, folder, Rules(), now=1001.0)
    assert report["window"] == {"folder": str(tmp_path), "from": 100.0, "to": 200.0, "images": 80, "requests": 40}
    assert "p_values" in report["measured"] and report["alerts"] == []
    assert monitor(tmp_path, folder, Rules(), now=1002.0)["window"]["images"] == 0
    serve(tmp_path, bundle, labels * 2, at=300.0, plan="fast")  # other steps are not the reference's
    assert monitor(tmp_path, folder, Rules(), now=1003.0)["window"]["images"] == 0


def test_an_alert_is_news_once_until_it_cooled_down_or_was_resolved(registered, tmp_path):
    folder, bundle = registered
    labels = [i % 3 for i in range(60)]
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    rules = Rules(cooldown_s=3600.0)

    def look(at, now, bad):
        serve(tmp_path, bundle, labels, at=at, images=noise if bad else None, first_seed=int(at))
        report = monitor(tmp_path, folder, rules, now=now)
        return {one["metric"]: one["status"] for one in report["alerts"]}, report

    first, report = look(1.0, 1000.0, True)
    assert first["quality"] == "new" and report["suggestion"] == "train"
    again, report = look(2.0, 2000.0, True)
    assert set(again.values()) == {"repeated"} and report["suggestion"] == ""
    cooled, _ = look(3.0, 5000.0, True)
    assert cooled["quality"] == "new"
    fine, report = look(4.0, 5100.0, False)
    assert fine == {} and len(report["resolved"]) >= 2 and report["suggestion"] == ""
    back, _ = look(5.0, 5200.0, True)
    assert back["quality"] == "new"


def test_images_of_an_earlier_version_with_the_same_bytes_are_not_the_new_ones(registered, tmp_path):
    folder, bundle = registered
    labels = [i % 3 for i in range(60)]
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    serve(tmp_path, bundle, labels, at=1.0, images=noise, version="1")
    serve(tmp_path, bundle, labels, at=2.0, version="2")
    assert monitor(tmp_path, folder, Rules(), now=3.0, version="2")["alerts"] == []
    serve(tmp_path, bundle, labels, at=4.0, images=noise, version="2")
    assert monitor(tmp_path, folder, Rules(), now=5.0, version="2")["suggestion"] == "train"


def test_what_was_tried_in_vain_is_not_suggested_again(tmp_path):
    one = alert("m", "latency", 90.0, 50.0, "slow", "tune", "warning")
    none = alert("m", "errors", 0.5, 0.02, "failed", "", "warning")

    def suggested(now):
        ledger = Ledger(tmp_path / LEDGER)
        told, _ = ledger.enter([one, none], ["latency", "errors"], "m", now, 100.0)
        ledger.close({}, "", {})
        return [entry["suggestion"] for entry in told]

    assert [suggested(now) for now in (0.0, 50.0, 100.0, 200.0, 300.0)] == [
        ["tune", ""], ["tune", ""], ["distill", ""], ["train", ""], ["train", ""],
    ]  # fmt: skip
    ledger = Ledger(tmp_path / LEDGER)
    ledger.enter([], ["latency", "errors"], "m", 310.0, 100.0)  # resolved
    ledger.close({}, "", {})
    assert suggested(320.0) == ["tune", ""]


def test_a_look_repeated_under_its_token_finds_the_same(registered, tmp_path):
    folder, bundle = registered
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    serve(tmp_path, bundle, [i % 3 for i in range(60)], at=1.0, images=noise)
    first = monitor(tmp_path, folder, Rules(), "run-1", now=10.0)
    assert monitor(tmp_path, folder, Rules(), "run-1", now=20.0) == first
    assert monitor(tmp_path, folder, Rules(), "run-2", now=20.0)["alerts"] == []


def test_failed_and_slow_requests_are_alerts_of_their_own(registered, tmp_path):
    folder, bundle = registered
    serve(tmp_path, bundle, [0] * 40, at=1.0, waited_ms=80.0, drawn_ms=40.0)
    serve(tmp_path, bundle, [0] * 6, at=2.0, status=503)
    report = monitor(tmp_path, folder, Rules(max_latency_ms=100.0), now=10.0)
    found = {one["metric"]: one for one in report["alerts"]}
    assert found["errors"]["value"] == pytest.approx(6 / 46) and found["errors"]["suggestion"] == ""
    assert found["latency"]["value"] == 120.0 and report["suggestion"] == "tune"
    assert monitor(tmp_path, folder, Rules(max_latency_ms=100.0), now=11.0)["alerts"] == []


def test_what_to_redo_grows_with_the_loss():
    assert what_to_redo("quality", 1.2) == "tune" and what_to_redo("quality", 2.0) == "distill"
    assert what_to_redo("quality", 5.0) == "train" == what_to_redo("class_drift", 1.0)
    assert what_to_redo("coverage", 1.0) == "distill"
    assert furthest(["tune", "distill", ""]) == "distill" and furthest([]) == ""


def test_fingerprints_tell_models_and_metrics_apart(tmp_path):
    one, same, other = (alert(m, "drift", v, 0.1, "", "tune") for m, v in (("a", 0.01), ("a", 0.02), ("b", 0.01)))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    (tmp_path / LEDGER).write_text("[1")
    with pytest.raises(DataError, match="is no ledger"):
        Ledger(tmp_path / LEDGER)


def test_the_command_prints_the_report_as_json(registered, tmp_path):
    folder, bundle = registered
    serve(tmp_path, bundle, [i % 3 for i in range(60)], at=1.0)
    command = [sys.executable, "-m", "mlx_tasks", "monitor", "--window", str(tmp_path), "--bundle", str(folder)]
    done = subprocess.run([*command, "--token", "t"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["alerts"] == [] and report["window"]["images"] == 60
    assert report == monitor(tmp_path, folder, Rules(), "t") | {"name": "bundle", "version": ""}
    assert read_json(tmp_path / LEDGER)["last"]["token"] == "t"
    done = subprocess.run([*command, "--level", "0"], capture_output=True, text=True)
    assert done.returncode == 10 and "level must lie in" in done.stderr


def test_a_window_of_another_bundle_measures_nothing(registered, tmp_path):
    folder, bundle = registered
    serve(tmp_path, bundle, [0] * 60, at=1.0, digest="another")
    report = monitor(tmp_path, folder, Rules())
    assert report["window"]["images"] == 0 and report["alerts"] == []
