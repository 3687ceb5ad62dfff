"""The image_text and evaluate stages on a small workspace: real digits, real (untrained) bundles, real sampling."""

import copy
import hashlib
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from mlx_tasks import hardware
from mlx_tasks.config import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.metrics import bench as bench_module
from mlx_tasks.metrics.candidates import Candidate
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.random_conv import RandomConvFeatures
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.params import parse_config
from mlx_tasks.progress import Progress
from mlx_tasks.samplers.grids import log_snr_grid, uniform_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.stages import evaluate, features, image_text
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.mlflow_tracker import open_tracker

NAMES = ["zero", "one", "two", "three"]
SCHEDULE = NoiseSchedule.cosine()


def _write_dataset(folder):
    source = load_digits()
    keep = np.flatnonzero(source.target < 4)[:400]
    images = np.round(source.images[keep] / 16 * 255).astype(np.uint8)[..., None]
    labels = source.target[keep]
    splits = np.repeat(["train", "validation", "test"], [280, 40, 80])
    captions = [("a handwritten {}", "the digit {}")[i % 2].format(NAMES[c]) for i, c in enumerate(labels)]
    (folder / "images").mkdir(parents=True)
    np.save(folder / "images" / "8.npy", images)
    pd.DataFrame({"index": np.arange(400), "class_index": labels, "caption": captions, "split": splits}).to_parquet(
        folder / "manifest.parquet"
    )
    write_json(folder / "classes.json", NAMES)
    write_json(folder / "summary.json", {"fingerprint": "f00d", "channels": 1})


def _write_bundle(folder, width, timesteps, guidance=1.0, solver="ddim", seed=0):
    model = Model(block_out_channels=(width, 2 * width), attention_head_dim=8, norm_num_groups=4)
    config = UNet2DConfig.build(model, 8, 1, len(NAMES), "relu")
    nfe = len(timesteps) * (1 if guidance == 1.0 else 2)
    sampler = Sampler(solver, timesteps, guidance, nfe, 8, 1, tuple(NAMES), len(NAMES))
    write_bundle(folder, UNet2DModel(config, mx.random.key(seed)), SCHEDULE, sampler)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    work = root / "work"
    _write_dataset(work / "dataset")
    _write_bundle(work / "teacher", 8, uniform_grid(SCHEDULE, 4).timesteps, guidance=1.5)
    for steps in (2, 1):
        _write_bundle(work / "students" / f"steps_{steps}", 8, uniform_grid(SCHEDULE, steps).timesteps, seed=steps)
    write_json(
        work / "students" / "table.json",
        {
            "students": [
                {"steps": 2, "accepted": True, "reason": ""},
                {"steps": 1, "accepted": False, "reason": "too far from the teacher"},
            ]
        },
    )
    _write_bundle(work / "searched", 4, uniform_grid(SCHEDULE, 4).timesteps, solver="dpmpp_2m", seed=5)
    rows = [
        {"budget": n, "grid": name, "solver": "dpmpp_2m", "timesteps": list(grid(SCHEDULE, n).timesteps)}
        for name, grid in (("uniform", uniform_grid), ("log_snr", log_snr_grid))
        for n in (2, 3)
    ]
    rows.append({**rows[-1], "grid": "tuned"})  # the search came back with the grid it started from
    rows.append({"budget": 3, "grid": "ppo", "solver": "dpmpp_2m", "timesteps": [900, 300]})  # one step saved
    learned = LearnedSteps((9.0, 2.0, 0.5, 0.0), (8.0, 2.5, 0.4), ((), (0.1,), (0.2, -0.05))).to_dict()
    rows.append({"budget": 3, "grid": "learned", "solver": "learned", "timesteps": [900, 600, 300], "learned": learned})
    write_json(work / "schedules" / "schedules.json", {"rows": rows})
    config = parse_config(
        {
            "train": {"resolutions": [8], "steps": 10},
            "model": {"block_out_channels": [8, 16], "norm_num_groups": 4},
            "evaluate": {
                "samples": 64,
                "nfe": [1, 2, 4, 5],
                "bootstrap": 20,
                "feature_steps": 40,
                "image_text_steps": 60,
                "latency_batch": 4,
            },
        }
    )
    with open_tracker(root, "evaluate", config) as tracker:
        progress = Progress("evaluate", root / ".run" / "progress", echo=lambda *a, **k: None)
        yield StageContext("evaluate", config, root, hardware.detect(), tracker, progress)


@pytest.fixture(scope="module")
def scores(context):
    features.run(context)
    image_text.run(context)
    evaluate.run(context)
    return read_json(context.work / "scores" / "scores.json")


def _row(scores, name):
    return next(row for row in scores["rows"] if row["candidate"] == name)


def test_the_image_text_model_says_what_its_score_is_worth(context, scores):
    facts = read_json(context.work / "image_text" / "model.json")
    assert facts["trained"] and facts["retrieval"]["choices"] == 4 and facts["retrieval"]["chance"] == 0.25
    assert facts["retrieval"]["low"] > 0.5
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


def test_a_score_is_that_of_the_images_the_bundle_draws(context, scores):
    """Drawn again here by hand: labels of the chosen test rows, keyed noise, 8 bits, the same space."""
    from mlx_tasks.data.loader import load_split, to_uint8
    from mlx_tasks.samplers.bundle_sampler import bundle_noise, sample_bundle

    setup = scores["setup"]
    test = load_split(context.work / "dataset", 8, "test")
    rows = np.sort(np.random.Generator(np.random.PCG64([0, 20])).permutation(80)[:64])
    bundle = read_bundle(context.work / "students" / "steps_2")
    drawn = sample_bundle(bundle, bundle_noise(bundle, setup["noise_seed"], 64), test.labels[rows]).images
    space = RandomConvFeatures(1)
    by_hand = frechet_distance(space(to_uint8(np.array(drawn))), space(np.array(test.images[rows])))
    assert _row(scores, "student-steps2")["metrics"]["frechet_distance"]["value"] == pytest.approx(by_hand, rel=1e-3)


def test_grids_that_cost_the_same_share_one_timing(scores):
    assert _row(scores, "searched-uniform-nfe3")["latency"] == _row(scores, "searched-log_snr-nfe3")["latency"]
    assert _row(scores, "searched-uniform-nfe3")["latency"] != _row(scores, "searched-uniform-nfe2")["latency"]


def test_the_refused_student_is_scored_and_may_not_win(scores):
    assert _row(scores, "student-steps1")["refused"] == "too far from the teacher"
    assert "student-steps1" not in scores["winner"]["eligible"]
    assert scores["winner"]["candidate"] in scores["winner"]["eligible"]


def test_pictures_and_flat_figures_are_there(context, scores):
    grids = context.work / "scores" / "grids"
    assert {path.stem for path in grids.glob("*.png")} == {row["candidate"] for row in scores["rows"]} | {
        "strip-winner",
        "strip-teacher",
    }
    sheet = np.asarray(Image.open(grids / "reference-real.png"))
    assert sheet.shape == (6 * 42, 6 * 82)  # 4 rows and 8 columns of 8 pixels with gaps of 2, six times
    figures = read_json(context.work / "metrics" / "evaluate.json")
    won = _row(scores, scores["winner"]["candidate"])
    assert figures["winner"]["frechet_distance"] == won["metrics"]["frechet_distance"]["value"]
    assert figures["winner"]["nfe"] == won["nfe"]
    names = {"real", "held-out", "class-missing", "noisy", "gaussian", "blurred", "noise"}
    assert set(figures["reference"]) == names


def test_a_killed_evaluation_goes_on_with_the_rows_it_has(context, scores, monkeypatch):
    """Stopped at the third candidate, then run again: no finished row is drawn again, and the result is the same."""
    real = bench_module.Bench.candidate_row
    drawn = []

    def stops(self, candidate, rows):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(candidate.name)
        return real(self, candidate, rows)

    monkeypatch.setattr(bench_module.Bench, "candidate_row", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(context)
    first = list(drawn)
    monkeypatch.setattr(bench_module.Bench, "candidate_row", lambda *a: (drawn.append(a[1].name), real(*a))[1])
    evaluate.run(context)
    assert len(drawn) == len(set(drawn)) == 11 and drawn[:3] == first
    again = read_json(context.work / "scores" / "scores.json")
    assert [_untimed(row) for row in again["rows"]] == [_untimed(row) for row in scores["rows"]]
    assert not (context.checkpoints / "rows").exists()


def _untimed(row):
    row = copy.deepcopy(row)
    for key in ("latency", "latency_ms", "seconds"):
        row.pop(key, None)
    for key in ("latency_ms", "images_per_second"):
        row["metrics"].pop(key, None)
    return row


def test_images_without_classes_or_captions_are_scored_and_no_image_text_score_is_made_up(tmp_path):
    work = tmp_path / "work"
    _write_dataset(work / "dataset")
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
    config = parse_config(
        {
            "train": {"resolutions": [8], "steps": 10},
            "evaluate": {
                "samples": 200,
                "nfe": [2],
                "bootstrap": 10,
                "feature_steps": 3,
                "image_text_steps": 5,
                "latency_batch": 2,
            },
        }
    )
    with open_tracker(tmp_path, "evaluate", config) as tracker:
        progress = Progress("evaluate", tmp_path / ".run" / "progress", echo=lambda *a, **k: None)
        context = StageContext("evaluate", config, tmp_path, hardware.detect(), tracker, progress)
        features.run(context)
        image_text.run(context)
        evaluate.run(context)
    scores = read_json(work / "scores" / "scores.json")
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


def test_the_sanity_ladder_is_in_the_scores_and_what_failed_it_decides_nothing(scores):
    sanity = scores["sanity"]
    assert sanity["frechet_distance"]["trusted"] and sanity["frechet_distance"]["checked"] == 7
    assert sanity["memorisation"]["checked"] == 1
    assert scores["winner"]["metric"] == "frechet_distance"
    assert scores["winner"]["because"] == "it passed the sanity ladder"
    real, held_out = (_row(scores, f"reference-{name}")["metrics"] for name in ("real", "held-out"))
    assert real["memorisation"]["value"] == 1.0  # training images are copies of training images
    assert held_out["memorisation"]["value"] < 0.3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the published shapes, where the params say that they lie."""
    import transformers
    from safetensors.torch import save_file
    from torch_references import InceptionV3ForFid, alexnet_features, randomise

    folder = tmp_path_factory.mktemp("weights")
    for name in ("inception_v3_fid", "lpips_alex", "dinov2_vits14"):
        (folder / name).mkdir()
    inception = randomise(InceptionV3ForFid(), 0)
    tensors = {k: v.contiguous() for k, v in inception.state_dict().items() if v.ndim}
    save_file(tensors, folder / "inception_v3_fid" / "inception_v3_fid.safetensors")
    stack = {f"features.{k}": v for k, v in randomise(alexnet_features(), 1).state_dict().items()}
    save_file(stack, folder / "lpips_alex" / "alexnet.safetensors")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder / "dinov2_vits14")
    return folder


def test_published_metrics_are_added_where_their_weights_are_given(weights):
    from mlx_tasks.metrics.published import in_their_span, open_published

    rng = np.random.default_rng(0)
    real, drawn = rng.integers(0, 256, (2, 10, 32, 32, 1)).astype(np.uint8)
    names = ("inception_v3_fid", "lpips_alex", "dinov2_vits14")
    opened = open_published(names, str(weights), real, None, np.repeat([0, 1], 5), 3, 0.95, 0)
    scores = {}
    for one in opened:
        scores |= one(drawn)
    assert set(scores) == {
        "fid",
        "kid",
        "lpips_diversity",
        "fd_dinov2",
    }  # ten images are too few for an Inception Score
    a, b = rng.normal(size=(9, 60)), rng.normal(size=(11, 60)) + 0.2
    small = in_their_span(a, b)
    assert small[0].shape == (9, 20)  # twenty rows of sixty features span twenty directions
    assert frechet_distance(*small) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    a, b = (opened[0].extractor(images).astype(np.float64) for images in (drawn, real))
    assert scores["fid"].value == pytest.approx(frechet_distance(*in_their_span(a, b)), rel=1e-6)


def test_equal_work_is_timed_once_whatever_its_steps(scores):
    plain, learned = (_row(scores, f"searched-{grid}-nfe3") for grid in ("uniform", "learned"))
    assert plain["latency"] == learned["latency"]
    assert plain["latency"] != _row(scores, "searched-uniform-nfe2")["latency"]


def test_the_plot_file_holds_the_candidates_scores(context, scores):
    table = pd.read_csv(context.work / "plots" / "evaluate.csv", keep_default_na=False).set_index("candidate")
    rows = [row for row in scores["rows"] if row["kind"] != "reference"]
    assert list(table.index) == [row["candidate"] for row in rows]
    for row in rows:
        told = table.loc[row["candidate"]]
        assert (told["nfe"], told["grid"]) == (row["nfe"], row["grid"])
        for metric in ("frechet_distance", "kernel_distance", "precision", "recall"):
            estimate = row["metrics"][metric]
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                assert told[f"{metric}{end}"] == pytest.approx(estimate[key], rel=1e-12)


def _small_clip(folder):
    """A CLIP of two layers with random weights, and a tokenizer of the dataset's words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[UNK]", "<start>", "<end>", "a", "handwritten", "the", "digit", *NAMES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", 1), ("<end>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    layers = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    text = layers | {"vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    vision = layers | {"image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_stage_scores_with_published_extractors_and_says_with_which_weights(context, scores, weights, tmp_path):
    from mlx_tasks.data.loader import load_split
    from mlx_tasks.metrics.extractors.clip import Clip
    from mlx_tasks.metrics.references import held_out_rows, matching_real

    _small_clip(weights / "clip_vit_b32")
    shutil.copytree(context.work, tmp_path / "work")
    asked = {"extractors": ("clip_vit_b32", "dinov2_vits14"), "weights": str(weights), "samples": 40, "nfe": (2,)}
    config = context.config.model_copy(update={"evaluate": context.config.evaluate.model_copy(update=asked)})
    with open_tracker(tmp_path, "evaluate", config) as tracker:
        evaluate.run(replace(context, config=config, root=tmp_path, tracker=tracker))
    told = read_json(tmp_path / "work" / "scores" / "scores.json")
    assert [one["weights"] for one in told["setup"]["published"]] == [
        hashlib.sha256((weights / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("clip_vit_b32", "dinov2_vits14")
    ]
    for row in told["rows"]:
        assert {"cmmd", "clip_score", "fd_dinov2"} <= set(row["metrics"])
    assert {"cmmd", "fd_dinov2"} <= set(told["sanity"])

    # the real images' rows once more, from the towers' outputs by hand
    test, train = (load_split(tmp_path / "work" / "dataset", 8, split) for split in ("test", "train"))
    rows = held_out_rows(len(test), 40, config.seed)
    drawn = matching_real(train.images, train.labels, test.labels[rows], config.seed)
    clip = Clip(weights / "clip_vit_b32")
    images, real = (np.float64(clip(np.asarray(chosen))) for chosen in (drawn, test.images[rows]))
    texts = np.float64(clip.embed_captions([test.captions[i] for i in rows]))
    a, b, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, real, texts))
    metrics = _row(told, "reference-real")["metrics"]
    assert metrics["clip_score"]["value"] == pytest.approx(100 * np.maximum((a * c).sum(axis=1), 0).mean(), rel=1e-5)

    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(axis=-1) / (2 * 10.0**2)).mean()

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert metrics["cmmd"]["value"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_published_weights_that_are_not_there_stop_the_stage_before_anything_is_scored(context, scores):
    config = context.config.model_copy(
        update={"evaluate": context.config.evaluate.model_copy(update={"extractors": ("inception_v3_fid",)})}
    )
    before = (context.work / "scores" / "scores.json").read_bytes()
    with pytest.raises(DataError, match="no weights of inception_v3_fid are on this machine"):
        evaluate.run(replace(context, config=config))
    assert (context.work / "scores" / "scores.json").read_bytes() == before


def test_several_noise_seeds_give_the_spread_and_the_first_one_stays_the_score(context, scores):
    from mlx_tasks.stages.evaluate import _open_bench

    changed = context.config.evaluate.model_copy(update={"seeds": 3, "bootstrap": 10})
    bench, _ = _open_bench(replace(context, config=context.config.model_copy(update={"evaluate": changed})))
    row = _row(scores, "student-steps2")
    candidate = Candidate("student-steps2", "student", row["bundle"], "ddim", "own", tuple(row["timesteps"]), 1.0, 2)
    found, _ = bench.candidate_row(candidate, scores["rows"])
    spread = found["over_seeds"]["frechet_distance"]
    assert spread["values"][0] == pytest.approx(row["metrics"]["frechet_distance"]["value"], rel=1e-6)
    assert len(set(spread["values"])) == 3 and spread["mean"] == pytest.approx(np.mean(spread["values"]))
    interval = stats.t.interval(0.95, 2, spread["mean"], stats.sem(spread["values"]))
    assert (spread["low"], spread["high"]) == (pytest.approx(interval[0]), pytest.approx(interval[1]))
    assert row["over_seeds"] == {} and set(row["per_class"]) == set(NAMES)
