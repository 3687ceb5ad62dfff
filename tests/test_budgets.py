"""Facts about the time that tune and evaluate may take: what is left out is told, and going on decides alike."""

import itertools
import shutil

import pytest
from evaluate_world import evaluate, gather, make_workspace, run_stage, untimed
from test_rl_stage import context_of, write_searched

from mlx_tasks.config import Tune
from mlx_tasks.files import read_json
from mlx_tasks.metrics.allowance import Allowance, in_turn
from mlx_tasks.metrics.entries import Entry
from mlx_tasks.rl.comparison import METHODS
from mlx_tasks.rl.effort import LEAST_TRIES, Plan, Size, make_plan
from mlx_tasks.stages import tune

# ---- tune


def test_what_digits_cost_leaves_nothing_out():
    plan = make_plan(Tune(), 0.001)
    assert plan.left_out == {} and plan.methods == Tune().methods and plan.tries == Tune().search_evaluations
    assert plan.size == Size(tuning=64, selection=32, test=128, batch=16, reference_steps=64)
    assert make_plan(Tune(max_minutes=None), 1e6).left_out == {}


@pytest.mark.parametrize("cost", [0.02, 0.2, 2.0])
def test_dearer_evaluations_leave_out_more_and_every_cut_has_its_reason(cost):
    asked = Tune(methods=("remembered", "shortest_path", "cma_es", "ppo", "gradient", "least_squares"))
    plan, dearer = make_plan(asked, cost), make_plan(asked, 4 * cost)
    assert dearer.size.test <= plan.size.test
    assert dearer.evaluations <= plan.evaluations < make_plan(asked, 1e-6).evaluations
    assert set(asked.methods) == set(plan.methods) | (set(plan.left_out) & set(METHODS))
    assert all("tune.max_minutes is 60" in why for why in plan.left_out.values())
    assert plan.evaluations * cost <= 60 * 60 or plan.evaluations == make_plan(asked, 1e9).evaluations
    assert make_plan(asked, 1e9).evaluations < 3000  # 20 minutes at 0.4 s each


def test_however_dear_the_least_is_done():
    plan = make_plan(Tune(), 1e9)
    assert plan.methods == ("remembered",) and plan.tries == LEAST_TRIES
    assert plan.size == Size(tuning=4, selection=2, test=8, batch=2, reference_steps=32)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_tune_without_time_ends_with_the_plain_searches_and_says_what_is_missing(tmp_path):
    write_searched(tmp_path / "work/searched")
    context = context_of(tmp_path, max_minutes=1e-6)
    tune.run(context)
    told = read_json(tmp_path / "work/schedules/schedules.json")
    assert {row["grid"] for row in told["rows"]} == {
        "uniform", "log_snr", "karras", "remembered", "log_snr_tuned", "karras_tuned",
    }  # fmt: skip
    assert {"ppo", "least_squares", "cma_es", "noises"} <= set(told["plan"]["left_out"])
    assert told["plan"]["max_minutes"] == 1e-6 and told["plan"]["seconds_per_evaluation"] > 0
    assert told["noises"] == {name: told["plan"]["size"][name] for name in told["noises"]} and told["rewards"] == []


def test_a_killed_tune_goes_on_with_the_plan_it_began_with(tmp_path, monkeypatch):
    """A slower clock after the kill changes nothing."""
    write_searched(tmp_path / "work/searched")
    context = context_of(tmp_path, max_minutes=0.5)
    first = tune._plan(context, tune.read_bundle(tmp_path / "work/searched"))
    monkeypatch.setattr(tune, "make_plan", lambda *_: make_plan(context.config.tune, 1e9))
    assert tune._plan(context, tune.read_bundle(tmp_path / "work/searched")) == first
    other = context_of(tmp_path, max_minutes=0.25)
    assert tune._plan(other, tune.read_bundle(tmp_path / "work/searched")).methods == ("remembered",)


# ---- evaluate


def entry(name, cost, kind="", refused=False):
    return Entry(name, cost, lambda _: None, kind, refused)


def test_kinds_take_turns_cheapest_first_and_the_refused_ones_come_last():
    share = [
        entry("real", 1), entry("teacher8", 8, "teacher"), entry("teacher4", 4, "teacher"),
        entry("student1", 1, "student", refused=True), entry("student2", 2, "student"), entry("student4", 4, "student"),
        entry("searched4", 3, "searched"),
    ]  # fmt: skip
    order = [one.name for one in in_turn(share)]
    assert order == ["real", "student2", "searched4", "teacher4", "student4", "teacher8", "student1"]


def test_an_allowance_cuts_between_candidates_and_never_the_first_or_a_reference():
    clock = Allowance(1.0)
    assert clock.refusal(entry("first", 1e9, "student")) == ""
    clock.spend(entry("first", 2, "student"), 20.0)
    assert clock.refusal(entry("second", 4, "student")) == ""  # 20 + 40 s
    why = clock.refusal(entry("third", 4.1, "student"))
    assert "about 41 s more after 20 s" in why and "evaluate.max_minutes is 1" in why
    assert clock.refusal(entry("real", 1e9)) == ""
    unlimited = Allowance(None)
    unlimited.spend(entry("first", 1, "student"), 1e9)
    assert unlimited.refusal(entry("second", 1e9, "student")) == ""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    make_workspace(root)
    for stage in ("features", "image_text"):
        run_stage(root, stage)
    return root


def test_an_evaluation_without_time_scores_one_candidate_a_slot_and_names_the_others(inputs, tmp_path):
    few = {"nfe": [1], "samples": 32, "bootstrap": 10, "slots": [0, 1]}
    shutil.copytree(inputs / "work", tmp_path / "work")
    scores = evaluate(tmp_path, max_minutes=1e-6, **few)
    candidates = [row["candidate"] for row in scores["rows"] if row["kind"] != "reference"]
    assert len(candidates) == 2 and scores["winner"]["candidate"] in candidates
    assert len([row for row in scores["rows"] if row["kind"] == "reference"]) == 7
    told = {one["name"]: one["reason"] for one in scores["left_out"]}
    unscored = [name for name, why in told.items() if "evaluate.max_minutes is 1e-06" in why]
    assert unscored and not set(unscored) & set(candidates)
    whole = evaluate(tmp_path, max_minutes=None, **few)
    names = {row["candidate"] for row in whole["rows"] if row["kind"] != "reference"}
    assert names == set(candidates) | set(unscored)
    alike = {row["candidate"]: untimed(row) for row in whole["rows"]}
    assert all(untimed(row) == alike[row["candidate"]] for row in scores["rows"])
    assert not any("max_minutes" in one["reason"] for one in whole["left_out"])
    assert list(itertools.islice((row["candidate"] for row in gather(tmp_path, **few)["rows"]), 7)) == [
        row["candidate"] for row in scores["rows"][:7]
    ]
