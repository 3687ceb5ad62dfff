"""The front against brute force and Optuna; the study: what is asked is a function of seed and results, told once."""

import itertools
import json
import shutil

import numpy as np
import optuna
import pytest

from mlx_tasks.errors import DataError
from mlx_tasks.search import study as studies
from mlx_tasks.search.pareto import choose, pareto_front
from mlx_tasks.search.space import Architecture, Space

SPACE = Space((8, 16, 24), (1, 2), (1, 2), ("none", "middle", "coarse", "all"), (4, 8), ("relu", "silu"), 8)


def brute_force_front(values):
    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [i for i, b in enumerate(values) if not any(beats(a, b) for a in values)]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [3, 1000])
def test_front_equals_brute_force(objectives, levels):
    rng = np.random.default_rng(objectives * levels)
    for count in (1, 2, 7, 60):
        values = rng.integers(levels, size=(count, objectives)).astype(float).tolist()
        assert pareto_front(values) == brute_force_front(values)


def test_known_front():
    assert pareto_front([[1, 4], [2, 2], [3, 3], [4, 1], [4, 4]]) == [0, 1, 3]
    assert pareto_front([[0, 1], [1, 0]]) == [0, 1]
    assert pareto_front([[1, 1], [1, 1], [2, 1]]) == [0, 1]
    assert pareto_front([]) == []
    with pytest.raises(ValueError, match="finite"):
        pareto_front([[1.0, float("nan")]])


def test_choice_is_the_fastest_within_the_limit():
    values = [[1.0, 9.0, 1.0], [1.4, 5.0, 1.0], [1.5, 4.0, 1.0], [1.51, 1.0, 1.0], [1.5, 4.0, 0.5]]
    assert choose(values, 0.0) == 0
    assert choose(values, 0.5) == 4  # equal latency and error: the front keeps only the one of less memory
    assert choose(values, 0.45) == 1
    assert choose(values, 1.0) == 3


def results_of(proposals, generation, fail=()):
    """Results with objectives that are a known function of the architecture."""
    results = []
    for p in proposals:
        result = {"generation": generation, "slot": p.slot, "number": p.number, "architecture": None, "values": None}
        if p.architecture is None:
            results.append({**result, "state": "SKIPPED", "reason": "nothing left"})
            continue
        a = p.architecture
        cost = a.width * a.multiplier * a.depth
        values = {"error": 1.0 / cost, "latency_ms": float(cost), "peak_memory_mb": float(a.width)}
        bad = p.slot in fail
        results.append(
            {
                **result,
                "architecture": a.as_dict(),
                "state": "FAIL" if bad else "COMPLETE",
                "reason": "the loss is not finite at step 3" if bad else "",
                "values": None if bad else values,
            }
        )
    return results


def generations(folder, seed, count, slots=4, space=SPACE, fail=()):
    """Plan `count` generations, each in a folder of its own as the stages do; the proposals and the last log."""
    asked, log = [], None
    for generation in range(count):
        fresh = folder / f"plan_{generation}" / "study.log"
        if log is not None:
            studies.copy_log(log, fresh)
        study = studies.open_study(fresh, space, seed, generation)
        if asked:
            studies.tell(study, space, results_of(asked[-1], generation - 1, fail))
        asked.append(studies.ask(study, space, range(slots), seed, generation))
        log = fresh
    return asked, log


def test_equal_seeds_and_results_ask_the_same(tmp_path):
    first, _ = generations(tmp_path / "a", 5, 3)
    again, _ = generations(tmp_path / "b" / "deeper", 5, 3)
    other, _ = generations(tmp_path / "c", 6, 1)
    different_results, _ = generations(tmp_path / "d", 5, 3, fail=(0, 1))
    assert first == again
    assert first[0] != other[0]
    assert first[0] == different_results[0]
    assert first[1:] != different_results[1:]


def test_a_moved_study_goes_on_as_if_it_had_stayed(tmp_path):
    asked, log = generations(tmp_path / "here", 1, 3)
    moved = tmp_path / "there" / "other name"
    moved.mkdir(parents=True)
    shutil.move(log, moved / "study.log")
    shutil.rmtree(tmp_path / "here")
    study = studies.open_study(moved / "study.log", SPACE, 1, 3)
    studies.tell(study, SPACE, results_of(asked[2], 2))
    stayed, _ = generations(tmp_path / "stay", 1, 4)
    assert studies.ask(study, SPACE, range(4), 1, 3) == stayed[3]


def test_plans_leave_only_the_journal_behind(tmp_path):
    _, log = generations(tmp_path, 0, 2)
    assert sorted(path.name for path in log.parent.iterdir()) == ["study.log"]
    assert all(isinstance(json.loads(line), dict) for line in log.read_text().splitlines())


def test_no_architecture_is_asked_twice_and_an_exhausted_space_says_so(tmp_path):
    small = Space((8, 12), (1, 2), (1,), ("none", "middle"), (4, 5), ("relu",), 4)
    everything = set(small)
    assert len(everything) == 8  # two widths, two multipliers; no attention or heads of 4: 5 divides no level
    asked, log = generations(tmp_path, 3, 4, slots=3, space=small)
    given = [p.architecture for plan in asked for p in plan if p.architecture is not None]
    assert len(given) == len(set(given)) and set(given) == everything
    assert [p.number for plan in asked for p in plan].count(None) == 12 - len(everything)
    reasons = [r["reason"] for r in studies.refusals(studies.open_study(log, small, 3, 9))]
    assert any("heads of 5" in reason for reason in reasons)
    assert any("the same as trial" in reason for reason in reasons)


def test_results_are_told_once(tmp_path):
    asked, log = generations(tmp_path, 0, 1)
    study = studies.open_study(log, SPACE, 0, 1)
    results = results_of(asked[0], 0, fail=(2,))
    assert studies.tell(study, SPACE, results[:2]) == [p.number for p in asked[0][:2]]
    assert studies.tell(study, SPACE, results) == [p.number for p in asked[0][2:]]
    before = log.read_bytes()
    assert studies.tell(study, SPACE, results) == []
    assert log.read_bytes() == before
    states = {row["slot"]: (row["state"], row["reason"]) for row in studies.rows(study, SPACE)}
    assert states[2] == ("FAIL", "the loss is not finite at step 3")
    assert states[0] == ("COMPLETE", "")


def test_a_value_that_is_not_finite_is_a_failure(tmp_path):
    asked, log = generations(tmp_path, 0, 1)
    study = studies.open_study(log, SPACE, 0, 1)
    results = results_of(asked[0], 0)
    results[1]["values"]["error"] = float("inf")
    studies.tell(study, SPACE, results)
    row = next(row for row in studies.rows(study, SPACE) if row["slot"] == 1)
    assert (row["state"], row["values"]) == ("FAIL", None) and "not finite" in row["reason"]


def test_results_of_another_study_are_refused(tmp_path):
    asked, log = generations(tmp_path, 0, 1)
    study = studies.open_study(log, SPACE, 0, 1)
    result = results_of(asked[0], 0)[0]
    wrong = {**result["architecture"], "depth": 3 - result["architecture"]["depth"]}
    with pytest.raises(DataError, match="not of this study"):
        studies.tell(study, SPACE, [{**result, "architecture": wrong}])
    with pytest.raises(DataError, match="not of this study"):
        studies.tell(study, SPACE, [{**result, "number": 99}])
    with pytest.raises(DataError, match="plan generation 0 again"):
        studies.open_study(log, Space((8,), (1,), (1,), ("none",), (4,), ("relu",), 8), 0, 1)
    with pytest.raises(DataError, match="run the plan before"):
        studies.copy_log(tmp_path / "nowhere", tmp_path / "study.log")


def test_optuna_agrees_on_the_front(tmp_path):
    asked, log = generations(tmp_path, 2, 5)
    study = studies.open_study(log, SPACE, 2, 5)
    studies.tell(study, SPACE, results_of(asked[4], 4))
    complete = [row for row in studies.rows(study, SPACE) if row["values"]]
    values = [[row["values"][name] for name in studies.OBJECTIVES] for row in complete]
    ours = {complete[i]["number"] for i in pareto_front(values)}
    assert ours == {trial.number for trial in study.best_trials}
    assert len(complete) == 20
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE] * 3


def test_the_sampler_beats_random_choice():
    """Two generations of 6, by the front's dominated volume in logarithms, on costs smooth in the architecture."""
    from optuna._hypervolume import compute_hypervolume

    space = Space((16, 24, 32, 48, 64), (1, 2), (1, 2, 3), ("none", "middle", "coarse"), (8, 16), ("relu", "silu"), 8)

    def costs(a):
        size = a.width * a.multiplier * a.depth
        attention = {"none": 0.0, "middle": 0.1, "coarse": 0.2}[a.attention]
        error = size**-0.5 * (1 - attention / 2) * (1.05 if a.act_fn == "relu" else 1.0)
        latency = size * (1.0 if a.act_fn == "relu" else 2.5) * (1 + 3 * attention)
        return dict(zip(studies.OBJECTIVES, (error, latency, a.width * (1 + a.multiplier)), strict=True))

    worst = np.log(np.max([list(costs(a).values()) for a in space], axis=0)) + 0.01

    def volume(seed, sampler):
        study = optuna.create_study(directions=["minimize"] * 3)
        tried = []
        for generation in range(2):
            study.sampler = sampler(seed, generation)
            proposals = studies.ask(study, space, range(6), seed, generation)
            results = results_of(proposals, generation)
            for proposal, result in zip(proposals, results, strict=True):
                result["values"] = costs(proposal.architecture)
            studies.tell(study, space, results)
            tried += [list(result["values"].values()) for result in results]
        return compute_hypervolume(np.log(tried), worst)

    def random_choice(seed, generation):
        return optuna.samplers.RandomSampler(seed=100 * seed + generation)

    ours, chance = ([volume(seed, sampler) for seed in range(12)] for sampler in (studies.sampler_of, random_choice))
    assert np.mean(ours) > np.mean(chance) + np.std(chance) / 12**0.5


def test_space_lists_exactly_what_can_be_built():
    listed = list(SPACE)
    assert len(listed) == len(set(listed))
    axes = itertools.product((8, 16, 24), (1, 2), (1, 2), ("middle", "coarse", "all"), (4, 8), ("relu", "silu"))
    with_attention = [Architecture(w, m, d, at, h, ac, 8) for w, m, d, at, h, ac in axes]
    assert {a for a in listed if a.head_dim} == {a for a in with_attention if a.problem is None}
    assert sum(a.head_dim is None for a in listed) == 24
    assert Architecture(12, 1, 1, "none", None, "relu", 8).problem == "12 channels are not divisible by 8 norm groups"
    assert "heads of 16" in Architecture(8, 1, 1, "all", 16, "relu", 8).problem
    assert Architecture(8, 2, 1, "coarse", 16, "relu", 8).problem is None  # only the second level attends
    with pytest.raises(DataError, match="unknown \\['heads'\\]"):
        Architecture.from_dict({**listed[0].as_dict(), "heads": 2})


def test_every_architecture_is_a_network_with_attention_where_it_says():
    from mlx.utils import tree_flatten

    from mlx_tasks.models.unet2d import UNet2DModel

    where = {"none": set(), "middle": {"mid_block"}}
    where["coarse"] = where["middle"] | {"down_blocks.1", "up_blocks.0"}
    where["all"] = where["coarse"] | {"down_blocks.0", "up_blocks.1"}
    for architecture in Space((8, 16), (2,), (1,), tuple(where), (8,), ("relu",), 8):
        config = architecture.unet_config(8, 1, 10)
        names = [name for name, _ in tree_flatten(UNet2DModel(config).parameters())]
        found = {name.split(".attentions")[0] for name in names if ".attentions." in name}
        assert found == where[architecture.attention]
        assert config.block_out_channels == (architecture.width, 2 * architecture.width)
        assert config.num_class_embeds == 11
