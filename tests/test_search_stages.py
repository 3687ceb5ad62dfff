"""The search on a small random teacher: objectives against their definitions, the chain, failures, resuming."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from mlx.utils import tree_flatten

from mlx_tasks import hardware
from mlx_tasks.config_training import Model
from mlx_tasks.data.loader import ImageSet, to_float
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.params import parse_config
from mlx_tasks.progress import Progress
from mlx_tasks.search.objectives import distillation_error, measure_cost
from mlx_tasks.search.pareto import pareto_front
from mlx_tasks.search.study import OBJECTIVES
from mlx_tasks.search.teaching import read_teaching
from mlx_tasks.stages import search_plan, search_select, search_trial
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.batches import noised_batch
from mlx_tasks.training.keys import named_key

CLASSES = ("a", "b", "c")
SEARCH = {
    "slots": [0, 1],
    "widths": [8],
    "multipliers": [1, 2],
    "depths": [1],
    "attention": ["none", "middle"],
    "head_dims": [4],
    "act_fns": ["relu"],
    "trial_updates": 4,
    "final_updates": 6,
    "batch_size": 8,
    "latency_batch": 2,
    "checkpoint_every": 2,
}


class Silent:
    """A tracker that keeps what it is told."""

    run_id = None

    def __init__(self):
        self.metric_rows, self.tag_rows = [], {}

    def params(self, values):
        pass

    def tags(self, values):
        self.tag_rows |= values

    def metrics(self, values, step):
        self.metric_rows.append((step, values))

    def image(self, name, pixels, step):
        pass

    def artifact(self, path, folder=""):
        assert path.exists()


def teacher_model(width=8, key=1):
    model = Model(block_out_channels=(width, width), attention_levels=(False, False), norm_num_groups=4, act_fn="relu")
    return UNet2DModel(UNet2DConfig.build(model, 8, 1, len(CLASSES)), key=mx.random.key(key))


def write_dataset(folder, count=40):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(count, 8, 8, 1), dtype=np.uint8)
    (folder / "images").mkdir(parents=True)
    np.save(folder / "images" / "8.npy", images)
    split = ["train"] * (count - 10) + ["validation"] * 10
    manifest = pd.DataFrame({"index": range(count), "class_index": np.arange(count) % 3, "caption": "", "split": split})
    manifest.to_parquet(folder / "manifest.parquet")
    write_json(folder / "classes.json", list(CLASSES))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workspace with a dataset and a random teacher."""
    root = tmp_path_factory.mktemp("prepared")
    write_dataset(root / "work" / "dataset")
    sampler = Sampler("ddim", (999, 499), 1.5, 4, 8, 1, CLASSES, null_label=3)
    write_bundle(root / "work" / "teacher", teacher_model(), NoiseSchedule.cosine(), sampler)
    return root


@pytest.fixture
def root(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "w")
    return tmp_path / "w"


def context_of(root, target, **search):
    config = parse_config({"model": {"norm_num_groups": 4}, "search": {**SEARCH, **search}})
    progress = Progress(target, root / ".run" / "progress", echo=lambda *a, **k: None)
    return StageContext(target, config, root, hardware.detect(), Silent(), progress)


def run_search(root, **search):
    """The six stages as dvc.yaml chains them."""
    for generation in (0, 1):
        search_plan.run(context_of(root, f"search_plan_{generation}", **search), generation)
        for slot in search.get("slots", SEARCH["slots"]):
            search_trial.run(context_of(root, f"search_trial@{generation}-{slot}", **search), generation, slot)
    context = context_of(root, "search_select", **search)
    search_select.run(context)
    return context


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """A workspace whose search is done: read it, change nothing."""
    root = tmp_path_factory.mktemp("finished") / "w"
    shutil.copytree(prepared, root)
    return root, run_search(root)


def images(count=12):
    rng = np.random.default_rng(3)
    pixels = rng.integers(256, size=(count, 8, 8, 1), dtype=np.uint8)
    return ImageSet(pixels, (np.arange(count) % 3).astype(np.int32), [""] * count, list(CLASSES))


def test_error_is_the_root_mean_square_of_the_velocities_difference():
    teacher, schedule, data = teacher_model(key=1), NoiseSchedule.cosine(), images()
    assert distillation_error(teacher, teacher, schedule, data, seed=0) == 0.0
    shifted = distillation_error(lambda x, t, c: teacher(x, t, c) + 0.25, teacher, schedule, data, seed=0)
    assert shifted == pytest.approx(0.25, rel=1e-4)

    other = teacher_model(key=2)
    batch = noised_batch(data, np.arange(512) % 12, 1000, named_key(7, "search-error", 0))
    t = np.array(batch["level"])
    alpha, std = (np.asarray(f(t))[:, None, None, None] for f in (schedule.alpha, schedule.std))
    x = mx.array((alpha * to_float(data.images[np.arange(512) % 12]) + std * np.array(batch["eps"])).astype(np.float32))
    gap = np.array(other(x, mx.array(t, mx.float32), batch["labels"]) - teacher(x, mx.array(t), batch["labels"]))
    expected = np.sqrt((gap.astype(np.float64) ** 2).mean())
    assert distillation_error(other, teacher, schedule, data, seed=7, batch_size=512) == pytest.approx(expected, 1e-4)


def test_cost_is_the_median_of_the_repeats_and_counts_the_model_alone():
    model = teacher_model(width=16)
    parameters = sum(value.size for _, value in tree_flatten(model.parameters()))
    ticks = iter(float(i * (i % 2)) for i in range(30))  # repeat i takes 2 i + 1 seconds: 1, 3, ..., 29
    ballast = mx.ones((64, 2**18))  # 64 MiB that are not the model's
    mx.eval(ballast)
    labels = mx.zeros((4,), dtype=mx.int32)

    def clock():
        return next(ticks)

    cost = measure_cost(model, model, (4, 8, 8, 1), labels, clock)
    assert (cost.latency_ms, cost.repeats, cost.batch, cost.parameters) == (15000.0, 15, 4, parameters)
    assert cost.latency_low_ms < cost.latency_ms < cost.latency_high_ms
    assert 4 * parameters / 2**20 < cost.peak_memory_mb < 60
    larger = measure_cost(model, model, (64, 8, 8, 1), mx.zeros((64,), dtype=mx.int32))
    assert larger.peak_memory_mb > 2 * cost.peak_memory_mb
    assert larger.latency_ms > 0


def test_the_chain_ends_in_a_front_and_a_bundle(finished):
    root, context = finished
    work = root / "work"
    pareto, metrics = read_json(work / "search/study/pareto.json"), read_json(work / "metrics/search.json")
    trials = [trial for trial in pareto["trials"] if trial["values"]]
    assert len(trials) == 4 == metrics["complete"] and metrics["failed"] == 0
    front = pareto_front([[trial["values"][name] for name in OBJECTIVES] for trial in trials])
    assert pareto["front"] == [trials[i]["number"] for i in front]
    chosen = next(trial for trial in trials if trial["number"] == pareto["chosen"]["number"])
    within = [t for t in trials if t["number"] in pareto["front"] and t["values"]["error"] <= pareto["limit"]]
    assert chosen["values"]["latency_ms"] == min(t["values"]["latency_ms"] for t in within)

    bundle = read_bundle(work / "searched")
    assert bundle.model.config.block_out_channels == (8, 8 * chosen["architecture"]["multiplier"])
    assert bundle.sampler.guidance_scale == 1.0 and bundle.sampler.nfe == 8
    assert bundle.lineage["folded_guidance_scale"] == 1.5
    teaching = read_teaching(work, context.config)
    assert teaching.error(bundle.model) == pytest.approx(metrics["error"], rel=1e-6)
    assert pareto["teacher"]["parameters"] == sum(v.size for _, v in tree_flatten(teaching.teacher.model.parameters()))
    assert metrics["error"] < metrics["trial_error"]  # it was trained on
    assert not any((root / ".checkpoints").rglob("*.safetensors"))


def write_loud_teacher(folder):
    """A teacher whose finite weights give a loss that is not."""
    model = teacher_model()
    model.conv_out.weight = model.conv_out.weight * 1e30
    sampler = Sampler("ddim", (999,), 1.5, 2, 8, 1, CLASSES, null_label=3)
    write_bundle(folder, model, NoiseSchedule.cosine(), sampler)


def test_a_diverged_trial_is_told_as_failed_and_an_exhausted_space_as_skipped(root):
    run, work = {"slots": [0, 1, 2], "attention": ["none"]}, root / "work"
    search_plan.run(context_of(root, "search_plan_0", **run), 0)
    plan = read_json(work / "search/plan_0/trials.json")["slots"]
    assert [entry["number"] is None for entry in plan] == [False, False, True]  # two architectures fit

    shutil.move(work / "teacher", root / "aside")
    write_loud_teacher(work / "teacher")
    search_trial.run(context_of(root, "search_trial@0-0", **run), 0, 0)
    result = read_json(work / "search/trials_0/0.json")
    assert result["state"] == "FAIL" and "not finite at step 1" in result["reason"] and result["values"] is None
    shutil.rmtree(work / "teacher")
    shutil.move(root / "aside", work / "teacher")

    for slot in (1, 2):
        search_trial.run(context_of(root, f"search_trial@0-{slot}", **run), 0, slot)
    assert [read_json(work / f"search/trials_0/{slot}.json")["state"] for slot in (1, 2)] == ["COMPLETE", "SKIPPED"]
    search_plan.run(context_of(root, "search_plan_1", **run), 1)
    for slot in (0, 1, 2):
        search_trial.run(context_of(root, f"search_trial@1-{slot}", **run), 1, slot)
    search_select.run(context_of(root, "search_select", **run))
    metrics = read_json(work / "metrics/search.json")
    assert (metrics["trials"], metrics["complete"], metrics["failed"]) == (2, 1, 1)
    failed = next(t for t in read_json(work / "search/study/trials.json")["trials"] if t["state"] == "FAIL")
    assert "not finite at step 1" in failed["reason"]


def test_a_search_without_a_complete_trial_says_why(root):
    shutil.rmtree(root / "work/teacher")
    write_loud_teacher(root / "work/teacher")
    with pytest.raises(DataError, match=r"no trial .* trial 0: the loss is not finite"):
        run_search(root)
    assert not (root / "work/search/study").exists()


class Killer(Silent):
    """Ends the stage at a step, as a kill would: nothing after it is written."""

    def metrics(self, values, step):
        if step == 3:
            raise KeyboardInterrupt


def test_a_killed_trial_and_a_killed_select_go_on_to_the_same_result(finished, root):
    (unkilled, _), other = finished, root
    stages = [
        (search_plan, "search_plan_0", (0,)),
        (search_trial, "search_trial@0-0", (0, 0)),
        (search_trial, "search_trial@0-1", (0, 1)),
        (search_plan, "search_plan_1", (1,)),
        (search_trial, "search_trial@1-0", (1, 0)),
        (search_trial, "search_trial@1-1", (1, 1)),
    ]
    for module, target, arguments in stages:
        context = context_of(other, target)
        if module is search_trial:
            with pytest.raises(KeyboardInterrupt):
                module.run(StageContext(**{**context.__dict__, "tracker": Killer()}), *arguments)
            assert any((other / ".checkpoints" / target).iterdir())
        module.run(context, *arguments)
        if module is search_trial:  # latency is measured, and may tell two runs apart; training may not
            path = f"work/search/trials_{arguments[0]}/{arguments[1]}"
            assert (unkilled / f"{path}.safetensors").read_bytes() == (other / f"{path}.safetensors").read_bytes()
            shutil.copy(unkilled / f"{path}.json", other / f"{path}.json")
    context = context_of(other, "search_select")
    with pytest.raises(KeyboardInterrupt):
        search_select.run(StageContext(**{**context.__dict__, "tracker": Killer()}))
    search_select.run(context)
    assert read_bundle(unkilled / "work/searched").digest == read_bundle(other / "work/searched").digest
    assert context.tracker.metric_rows[0][0] == 3  # it went on from step 2


def test_plans_are_equal_wherever_they_are_made(finished, tmp_path):
    root, _ = finished
    shutil.copytree(root / "work", tmp_path / "elsewhere/work")
    shutil.rmtree(tmp_path / "elsewhere/work/search/plan_1")
    search_plan.run(context_of(tmp_path / "elsewhere", "search_plan_1"), 1)
    plans = [(base / "work/search/plan_1/trials.json").read_text() for base in (root, tmp_path / "elsewhere")]
    assert plans[0] == plans[1]
    assert json.loads(plans[0])["generation"] == 1


def test_missing_parts_are_named(root):
    with pytest.raises(DataError, match="run search_plan --generation 0"):
        search_trial.run(context_of(root, "search_trial@0-0"), 0, 0)
    search_plan.run(context_of(root, "search_plan_0"), 0)
    with pytest.raises(DataError, match="no slot 7"):
        search_trial.run(context_of(root, "search_trial@0-7"), 0, 7)
    with pytest.raises(DataError, match=r"no result of slots \[0, 1\]"):
        search_plan.run(context_of(root, "search_plan_1"), 1)
