"""The image_text, score_share and evaluate stages on a small workspace: what their results are."""

import shutil

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from evaluate_world import (
    NAMES,
    SCHEDULE,
    evaluate,
    make_workspace,
    row_of,
    run_stage,
    write_dataset,
)
from PIL import Image
from scipy import stats

from mlx_tasks.config_training import Model
from mlx_tasks.files import read_json, write_json
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers.grids import uniform_grid


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    make_workspace(root)
    return root / "work"


@pytest.fixture(scope="module")
def scores(work):
    for stage in ("features", "image_text"):
        run_stage(work.parent, stage)
    return evaluate(work.parent)


def test_the_image_text_model_says_what_its_score_is_worth(work, scores):
    facts = read_json(work / "image_text" / "model.json")
    assert facts["trained"] and facts["retrieval"]["choices"] == 4 and facts["retrieval"]["chance"] == 0.25
    assert facts["retrieval"]["low"] > 0.5 and facts["untrusted_because"] == ""
    assert facts["true_captions"] > facts["shuffled_captions"] + 10
    assert facts["config"]["max_bytes"] == 24  # "a handwritten three" has 19


def test_every_candidate_and_reference_has_a_row_and_what_was_left_out_says_why(scores):
    assert [row["candidate"] for row in scores["rows"]] == [
        "reference-real",
        "reference-class-missing",
        "reference-held-out",
        "reference-noisy",
        "reference-gaussian",
        "reference-blurred",
        "reference-noise",
        "teacher-ddim-uniform-nfe2",
        "teacher-ddim-uniform-nfe4",
        "teacher-dpmpp_2m-log_snr-nfe4",
        "student-steps2",
        "student-steps1",
        "searched-uniform-nfe2",
        "searched-uniform-nfe3",
        "searched-log_snr-nfe2",
        "searched-log_snr-nfe3",
        "searched-ppo-nfe2-of-3",
        "searched-learned-nfe3",
    ]
    reasons = {one["name"]: one["reason"] for one in scores["left_out"]}
    assert reasons["teacher-ddim-uniform-nfe1"] == "1 evaluations pay for no step of ddim with guidance"
    assert reasons["teacher-ddim-uniform-nfe5"] == "the same as with 4 evaluations"
    assert reasons["teacher-dpmpp_2m-karras-nfe2"] == "one step of dpmpp_2m is one step of ddim"
    assert reasons["teacher-dpmpp_2m-karras-nfe4"] == "the same grid as teacher-dpmpp_2m-log_snr-nfe4"  # two ends each
    assert reasons["searched-tuned-nfe3"] == "the same grid as searched-log_snr-nfe3"


def test_each_row_has_every_metric_with_an_interval_around_it(scores):
    for row in scores["rows"]:
        metrics = row["metrics"]
        wanted = {
            "frechet_distance",
            "kernel_distance",
            "frechet_distance_embedded",
            "kernel_distance_embedded",
            "precision",
            "recall",
            "density",
            "coverage",
            "memorisation",
            "c2st_accuracy",
            "c2st_p_value",
            "image_text_score",
        }
        if row["kind"] != "reference":
            wanted |= {"latency_ms", "images_per_second"}
            assert row["latency_ms"] == metrics["latency_ms"]["value"] > 0
            assert 0 < row["size_mb"] * 2**20 - 4 * row["parameters"] < 30_000  # float32, and the file's header
        assert set(metrics) == wanted
        assert row["samples"] == 64
        for name, found in metrics.items():
            if name != "c2st_p_value":
                assert found["low"] <= found["value"] <= found["high"]


def test_real_images_score_best_noise_worst_and_untrained_models_near_noise(scores):
    """64 images of four classes: too few for the whole ladder, which test_metrics_random_conv.py climbs with 400."""
    distance = {row["candidate"]: row["metrics"]["frechet_distance"]["value"] for row in scores["rows"]}
    references = {name: value for name, value in distance.items() if name.startswith("reference-")}
    assert min(references, key=references.get) == "reference-real"
    assert max(references, key=references.get) == "reference-noise"
    assert distance["teacher-ddim-uniform-nfe4"] > 2 * distance["reference-blurred"]


def test_a_score_is_that_of_the_images_the_bundle_draws(work, scores):
    """Drawn again here by hand: labels of the chosen test rows, keyed noise, 8 bits, the same space."""
    from mlx_tasks.data.loader import load_split, to_uint8
    from mlx_tasks.samplers.bundle_sampler import bundle_noise, sample_bundle

    setup = scores["setup"]
    test = load_split(work / "dataset", 8, "test")
    rows = np.sort(np.random.Generator(np.random.PCG64([0, 20])).permutation(80)[:64])
    bundle = read_bundle(work / "students" / "steps_2")
    drawn = sample_bundle(bundle, bundle_noise(bundle, setup["noise_seed"], 64), test.labels[rows]).images
    space = RandomConvFeatures(1)
    by_hand = frechet_distance(space(to_uint8(np.array(drawn))), space(np.array(test.images[rows])))
    assert row_of(scores, "student-steps2")["metrics"]["frechet_distance"]["value"] == pytest.approx(by_hand, rel=1e-3)


def test_grids_that_cost_the_same_share_one_timing(scores):
    assert row_of(scores, "searched-uniform-nfe3")["latency"] == row_of(scores, "searched-log_snr-nfe3")["latency"]
    assert row_of(scores, "searched-uniform-nfe3")["latency"] != row_of(scores, "searched-uniform-nfe2")["latency"]


def test_the_refused_student_is_scored_and_may_not_win(scores):
    assert row_of(scores, "student-steps1")["refused"] == "too far from the teacher"
    assert "student-steps1" not in scores["winner"]["eligible"]
    assert scores["winner"]["candidate"] in scores["winner"]["eligible"]


def test_pictures_and_flat_figures_are_there(work, scores):
    grids = work / "scores" / "grids"
    assert {path.stem for path in grids.glob("*.png")} == {row["candidate"] for row in scores["rows"]} | {
        "strip-winner",
        "strip-teacher",
    }
    sheet = np.asarray(Image.open(grids / "reference-real.png"))
    assert sheet.shape == (6 * 42, 6 * 82)  # 4 rows and 8 columns of 8 pixels with gaps of 2, six times
    figures = read_json(work / "metrics" / "evaluate.json")
    won = row_of(scores, scores["winner"]["candidate"])
    assert figures["winner"]["frechet_distance"] == won["metrics"]["frechet_distance"]["value"]
    assert figures["winner"]["nfe"] == won["nfe"]
    names = {"real", "held-out", "class-missing", "noisy", "gaussian", "blurred", "noise"}
    assert set(figures["reference"]) == names


def test_images_without_classes_or_captions_are_scored_and_no_image_text_score_is_made_up(tmp_path):
    work = tmp_path / "work"
    write_dataset(work / "dataset")
    manifest = pd.read_parquet(work / "dataset" / "manifest.parquet")
    manifest.assign(class_index=-1, caption="").to_parquet(work / "dataset" / "manifest.parquet")
    write_json(work / "dataset" / "classes.json", [])
    config = UNet2DConfig.build(
        Model(block_out_channels=(4, 8), attention_head_dim=8, norm_num_groups=4), 8, 1, None, "relu"
    )
    for folder in ("teacher", "students/steps_2", "searched"):
        sampler = Sampler("ddim", uniform_grid(SCHEDULE, 2).timesteps, 1.0, 2, 8, 1)
        write_bundle(work / folder, UNet2DModel(config, mx.random.key(0)), SCHEDULE, sampler)
    write_json(work / "students" / "table.json", {"students": [{"steps": 2, "accepted": True, "reason": ""}]})
    write_json(work / "schedules" / "schedules.json", {"rows": []})
    settings = {"samples": 200, "nfe": [2], "bootstrap": 10, "feature_steps": 3, "image_text_steps": 5}
    for stage in ("features", "image_text"):
        run_stage(tmp_path, stage, **settings)
    scores = evaluate(tmp_path, **settings)
    assert [row["candidate"] for row in scores["rows"]] == [
        "reference-real",
        "reference-held-out",
        "reference-noisy",
        "reference-gaussian",
        "reference-blurred",
        "reference-noise",
        "teacher-ddim-uniform-nfe2",
        "teacher-dpmpp_2m-log_snr-nfe2",
        "student-steps2",
    ]
    assert all("image_text_score" not in row["metrics"] for row in scores["rows"])
    assert scores["setup"]["no_image_text_score_because"] == "the training images have no captions, or all the same one"
    assert scores["setup"]["samples"] == 80 < scores["setup"]["samples_asked"]


def test_captions_that_read_alike_give_a_score_that_nothing_is_chosen_by(tmp_path):
    make_workspace(tmp_path)
    work = tmp_path / "work"
    manifest = pd.read_parquet(work / "dataset" / "manifest.parquet")
    manifest.assign(caption="of many, " * 70 + manifest["caption"]).to_parquet(work / "dataset" / "manifest.parquet")
    write_json(work / "schedules" / "schedules.json", {"rows": []})
    settings = {"slots": [0], "nfe": [2], "bootstrap": 10, "feature_steps": 3, "image_text_steps": 5}
    for stage in ("features", "image_text"):
        run_stage(tmp_path, stage, **settings)
    facts = read_json(work / "image_text" / "model.json")
    assert (facts["window_bytes"], facts["captions_cut"]) == (96, 360)
    assert facts["untrusted_because"].startswith("of 100% of the test images the caption's first 96 bytes are those of")
    scores = evaluate(tmp_path, **settings)
    judged = scores["sanity"]["image_text_score"]
    assert not judged["trusted"] and judged["broken"][-1] == facts["untrusted_because"]


def test_the_sanity_ladder_is_in_the_scores_and_what_failed_it_decides_nothing(scores):
    sanity = scores["sanity"]
    assert sanity["frechet_distance"]["trusted"] and sanity["frechet_distance"]["checked"] == 7
    assert sanity["memorisation"]["checked"] == 1
    assert scores["winner"]["metric"] == "frechet_distance"
    assert scores["winner"]["because"] == "it passed the sanity ladder"
    real, held_out = (row_of(scores, f"reference-{name}")["metrics"] for name in ("real", "held-out"))
    assert real["memorisation"]["value"] == 1.0  # training images are copies of training images
    assert held_out["memorisation"]["value"] < 0.3


def test_equal_work_is_timed_once_whatever_its_steps(scores):
    plain, learned = (row_of(scores, f"searched-{grid}-nfe3") for grid in ("uniform", "learned"))
    assert plain["latency"] == learned["latency"]
    assert plain["latency"] != row_of(scores, "searched-uniform-nfe2")["latency"]


def test_the_plot_file_holds_the_candidates_scores(work, scores):
    table = pd.read_csv(work / "plots" / "evaluate.csv", keep_default_na=False).set_index("candidate")
    rows = [row for row in scores["rows"] if row["kind"] != "reference"]
    assert list(table.index) == [row["candidate"] for row in rows]
    for row in rows:
        told = table.loc[row["candidate"]]
        assert (told["nfe"], told["grid"]) == (row["nfe"], row["grid"])
        for metric in ("frechet_distance", "kernel_distance", "precision", "recall"):
            estimate = row["metrics"][metric]
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                assert told[f"{metric}{end}"] == pytest.approx(estimate[key], rel=1e-12)


def test_several_noise_seeds_give_the_spread_and_the_first_one_stays_the_score(work, scores, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    row = row_of(scores, "student-steps2")
    found = row_of(evaluate(tmp_path, seeds=3, bootstrap=10, nfe=[2], slots=[0]), "student-steps2")
    assert set(found["over_seeds"]) == set(found["metrics"]) - {"latency_ms", "images_per_second"}
    spread = found["over_seeds"]["frechet_distance"]
    assert spread["values"][0] == pytest.approx(row["metrics"]["frechet_distance"]["value"], rel=1e-6)
    assert len(set(spread["values"])) == 3 and spread["mean"] == pytest.approx(np.mean(spread["values"]))
    interval = stats.t.interval(0.95, 2, spread["mean"], stats.sem(spread["values"]))
    assert (spread["low"], spread["high"]) == (pytest.approx(interval[0]), pytest.approx(interval[1]))
    assert row["over_seeds"] == {} and set(row["per_class"]) == set(NAMES)
