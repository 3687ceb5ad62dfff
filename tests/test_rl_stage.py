"""The tune stage on a small random bundle: files, fresh noises, resuming, refusals."""

import shutil

import mlx.core as mx
import numpy as np
import pytest

from mlx_tasks import hardware
from mlx_tasks.config_training import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.domains.book import Entry, SettingsBook, entries_of_run
from mlx_tasks.domains.features import NAMES
from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.models.bundle import Sampler, read_bundle, write_bundle
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.params import parse_config
from mlx_tasks.progress import Progress
from mlx_tasks.rl import tuning
from mlx_tasks.rl.comparison import METHODS as ALL_METHODS
from mlx_tasks.rl.policy import load_policy
from mlx_tasks.rl.problem import bundle_problem
from mlx_tasks.samplers.bundle_sampler import sample_bundle
from mlx_tasks.samplers.grids import grid_from_timesteps, uniform_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.stages import tune
from mlx_tasks.stages.context import StageContext

BUDGETS = (2, 3)
TUNE = {
    "nfe_budgets": BUDGETS,
    "ppo_steps": 48,
    "num_envs": 2,
    "batch_size": 2,
    "reference_steps": 8,
    "search_evaluations": 6,
    "gradient_iterations": 4,
    "methods": ["remembered", "shortest_path", "cma_es", "ppo", "gradient_levels", "gradient", "least_squares"],
    "test_noises": 8,
}
METHODS = set(ALL_METHODS)
LEARNED = {"gradient", "least_squares"}
DEFAULTS = {"uniform", "log_snr", "karras"}


class Records:
    """A tracker that keeps metrics, and ends the stage at a step if told to."""

    run_id = None

    def __init__(self, end_at=None):
        self.rows, self._end_at = [], end_at

    def metrics(self, values, step):
        self.rows.append((step, values))
        if sum("tune/greedy_reward" in told for _, told in self.rows) == self._end_at:
            raise KeyboardInterrupt

    def artifact(self, path, folder=""):
        assert path.exists()


def write_searched(folder, guidance=1.0):
    model = Model(block_out_channels=(8, 8), attention_levels=(False, False), norm_num_groups=4, act_fn="relu")
    network = UNet2DModel(UNet2DConfig.build(model, 8, 1, 3), key=mx.random.key(5))
    schedule = NoiseSchedule.cosine()
    nfe = 4 if guidance == 1.0 else 8
    sampler = Sampler("dpmpp_2m", uniform_grid(schedule, 4).timesteps, guidance, nfe, 8, 1, ("a", "b", "c"), 3)
    write_bundle(folder, network, schedule, sampler)
    root = folder.parents[1]
    write_json(root / "work/dataset/summary.json", {"domain": {"name": "digits", "statistics": [0.1] * len(NAMES)}})
    found = Entry("digits", (0.1,) * len(NAMES), 3, (20.0, 2.0, 0.2), 0.1, 0.3, "another model", 8)
    SettingsBook().with_entries([found]).save(root / "include/sampler_settings.json")


def context_of(root, tracker=None, **changes):
    config = parse_config({"seed": 4, "tune": {**TUNE, **changes}})
    progress = Progress("tune", root / ".run" / "progress", echo=lambda *a, **k: None)
    return StageContext("tune", config, root, hardware.detect(), tracker or Records(), progress)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A workspace with a random student and its schedules, and the tracker."""
    root = tmp_path_factory.mktemp("tuned")
    write_searched(root / "work" / "searched")
    tracker = Records()
    tune.run(context_of(root, tracker))
    return root, tracker


def test_every_method_has_a_row_at_every_budget(tuned):
    root, _ = tuned
    schedules = read_json(root / "work/schedules/schedules.json")
    assert {(row["budget"], row["grid"]) for row in schedules["rows"]} == {(n, m) for n in BUDGETS for m in METHODS}
    for row in schedules["rows"]:
        assert row["nfe"] == len(row["timesteps"]) <= row["budget"]
        assert row["low"] <= row["error"] <= row["high"]
        assert (row["learning_evaluations"] > 0) == (row["grid"] not in DEFAULTS)
        assert (row["learned"] is not None) == (row["solver"] == "learned") == (row["grid"] in LEARNED)
        grid_from_timesteps(NoiseSchedule.cosine(), row["timesteps"])
    for budget in BUDGETS:
        entry = schedules["budgets"][str(budget)]
        kept = [row["grid"] for row in schedules["rows"] if row["budget"] == budget and row["kept"]]
        assert kept == [entry["kept"]]
        assert f"{entry['kept']} is kept" in entry["verdict"]
    assert schedules["reference"]["steps"] == 8 == len(schedules["reference"]["timesteps"])
    # 8 + 4 + 8 noises, 8 steps each
    assert schedules["reference"]["evaluations"] == 160
    assert [record["number"] for record in schedules["rewards"]] == [1]


def test_errors_are_those_of_sampling_the_bundle_on_noises_of_the_test(tuned):
    root, _ = tuned
    schedules, bundle = read_json(root / "work/schedules/schedules.json"), read_bundle(root / "work/searched")
    test, _ = bundle_problem(bundle, "dpmpp_2m", 4, "test", 8, 2, 8)
    noise, truth = (mx.concatenate([t.noise for t in test.tasks]), np.concatenate([t.truth for t in test.tasks]))
    for row in schedules["rows"][: len(METHODS)]:
        learned = row["learned"]
        grid = LearnedSteps.from_dict(learned) if learned else grid_from_timesteps(bundle.schedule, row["timesteps"])
        drawn = sample_bundle(bundle, noise, [i % 3 for i in range(8)], grid, "dpmpp_2m", batch_size=8)
        errors = np.sqrt(((np.array(drawn.images) - truth) ** 2).mean(axis=(1, 2, 3)))
        assert row["error"] == pytest.approx(float(errors.mean()), rel=1e-3)


def test_the_nearest_images_grid_is_a_method_and_the_run_goes_into_the_book(tuned):
    root, _ = tuned
    schedules = read_json(root / "work/schedules/schedules.json")
    book = SettingsBook.load(root / "include/sampler_settings.json")
    assert schedules["settings_book"] == book.digest
    row = next(row for row in schedules["rows"] if (row["budget"], row["grid"]) == (3, "remembered"))
    levels = NoiseSchedule.cosine().sigmas[row["timesteps"]]
    np.testing.assert_allclose(levels, (20.0, 2.0, 0.2), rtol=0.03)
    entries = entries_of_run(root)
    assert [entry.budget for entry in entries] == list(BUDGETS)
    of = [row for row in schedules["rows"] if row["budget"] == 3 and not row["learned"]]
    assert entries[1].error == min(row["error"] for row in of)
    assert book.with_entries(entries).version == book.version + 1


def test_noises_that_are_learned_on_are_not_judged_on(tuned):
    bundle = read_bundle(tuned[0] / "work/searched")
    purposes = ("tuning", "selection", "test")
    problems = [bundle_problem(bundle, "ddim", 4, purpose, 4, 2, 8)[0] for purpose in purposes]
    images = [np.array(image).tobytes() for problem in problems for task in problem.tasks for image in task.noise]
    assert len(set(images)) == 12


def test_the_policy_on_disk_gives_the_grids_of_the_rows(tuned):
    root, _ = tuned
    schedules, bundle = read_json(root / "work/schedules/schedules.json"), read_bundle(root / "work/searched")
    selection, _ = bundle_problem(bundle, "dpmpp_2m", 4, "selection", 4, 2, 8)
    policy = load_policy(root / "work/schedules/policy")
    notes = read_json(root / "work/schedules/policy/policy.json")["notes"]
    start = {int(budget): grid for budget, grid in notes["start"].items()}
    for row in (row for row in schedules["rows"] if row["grid"] == "ppo"):
        exported = tuning.export_grid(policy, selection, BUDGETS, row["budget"], start)
        assert list(exported.timesteps) == row["timesteps"]


def test_metrics_are_flat_and_the_reward_curve_is_told(tuned):
    root, tracker = tuned
    metrics = read_json(root / "work/metrics/tune.json")
    assert all(isinstance(value, (int, float, str)) for value in metrics.values()) and len(metrics) == 2 * 11 + 5
    assert {step for step, values in tracker.rows if "tune/gradient_nfe3_error" in values} == {0, 4}
    steps = [step for step, values in tracker.rows if "tune/greedy_reward" in values]
    assert steps == [48]
    assert not any((root / ".checkpoints").rglob("*.safetensors"))


def test_a_killed_tune_goes_on_to_the_same_schedules(tuned, tmp_path, monkeypatch):
    from mlx_tasks.rl import ppo

    monkeypatch.setattr(ppo.PpoOptions, "steps_per_env", property(lambda self: 8))  # three iterations of 16
    write_searched(tmp_path / "a/work/searched")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    tune.run(context_of(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        tune.run(context_of(tmp_path / "b", Records(end_at=3)))
    assert (tmp_path / "b/.checkpoints/tune/found_3.json").is_file()
    tracker = Records()
    tune.run(context_of(tmp_path / "b", tracker))
    assert next(s for s, told in tracker.rows if "tune/greedy_reward" in told) == 48  # two iterations were kept
    policies = [(tmp_path / run / "work/schedules/policy/policy.safetensors").read_bytes() for run in "ab"]
    assert policies[0] == policies[1]
    rows = [read_json(tmp_path / run / "work/schedules/schedules.json")["rows"] for run in "ab"]
    for a, b in zip(*rows, strict=True):
        for timed in ("learning_seconds", "learning_evaluations"):
            del a[timed], b[timed]
        assert a == b


def test_guidance_that_is_not_folded_in_is_refused(tmp_path):
    write_searched(tmp_path / "work/searched", guidance=1.5)
    with pytest.raises(DataError, match="fold the guidance in"):
        tune.run(context_of(tmp_path))


def test_without_ppo_there_is_no_policy_and_no_reward(tmp_path):
    write_searched(tmp_path / "work/searched")
    tune.run(context_of(tmp_path, methods=["least_squares"], nfe_budgets=[3]))
    schedules = read_json(tmp_path / "work/schedules/schedules.json")
    assert schedules["rewards"] == [] and not (tmp_path / "work/schedules/policy").exists()
    assert {row["grid"] for row in schedules["rows"]} == DEFAULTS | {"log_snr_tuned", "karras_tuned", "least_squares"}
