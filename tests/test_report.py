"""The report: one HTML file that needs nothing else, saying the same numbers as its JSON, whatever is missing."""

import functools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlx_tasks import hardware
from mlx_tasks.comparison.compare import compare
from mlx_tasks.comparison.earlier import write_comparison
from mlx_tasks.comparison.records import RunRecord
from mlx_tasks.config import Config, Gate
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.files import read_json, write_json
from mlx_tasks.metrics.ladder import check_ladder
from mlx_tasks.metrics.pictures import class_rows, png_bytes, tile
from mlx_tasks.metrics.winner import choose_winner
from mlx_tasks.progress import Progress
from mlx_tasks.registry.gate import Champion, Score, judge
from mlx_tasks.report.charts import interval
from mlx_tasks.report.collect import SOURCES, collect
from mlx_tasks.report.render import duration, render
from mlx_tasks.report.svg import Axis, axis_over, number
from mlx_tasks.samplers.grids import karras_grid, log_snr_grid, uniform_grid
from mlx_tasks.stages import report as stage
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.mlflow_tracker import open_tracker

SCHEDULE = NoiseSchedule.cosine(1024)
COMPARISON = "work/registered/comparison"
GRIDS = {"uniform": uniform_grid, "log_snr": log_snr_grid, "karras": karras_grid}


def _estimate(value, width=0.15):
    return {"value": value, "low": value * (1 - width), "high": value * (1 + width)}


def _row(name, kind, distance, nfe=0, latency=None, **more):
    metrics = {
        "frechet_distance": _estimate(distance),
        "kernel_distance": _estimate(distance / 12),
        "precision": _estimate(0.9 - min(0.8, distance), 0.04),
        "recall": _estimate(0.91 - min(0.8, 1.3 * distance), 0.04),
        "c2st_accuracy": _estimate(min(1.0, 0.5 + 1.5 * distance), 0.05),
        "c2st_p_value": {"value": 0.2, "low": None, "high": None},
        "image_text_score": _estimate(88 - 20 * min(1, distance), 0.02),
    }
    row = {"candidate": name, "kind": kind, "solver": None, "grid": None, "nfe": nfe, "steps": 0, "refused": ""}
    row |= {"metrics": metrics, "latency_ms": latency, "parameters": None, "size_mb": None, "samples": 400, "seed": 0}
    if latency is not None:
        row["latency"] = {"median_ms": latency, "low_ms": latency * 0.95, "high_ms": latency * 1.1, "batch": 16}
        row |= {"parameters": 412_065, "size_mb": 1.6, "steps": nfe}
    return row | more


def _scores():
    rows = [
        _row(f"reference-{name}", "reference", value)
        for name, value in {
            "real": 0.0171,
            "class-missing": 0.0312,
            "noisy": 0.034,
            "gaussian": 0.131,
            "blurred": 1.17,
            "noise": 6.3,
        }.items()
    ]
    teacher = {
        ("ddim", "uniform"): (0.71, 0.24, 0.109, 0.078),
        ("dpmpp_2m", "log_snr"): (None, 0.31, 0.081, 0.066),
        ("dpmpp_2m", "karras"): (None, 0.36, 0.074, 0.062),
    }
    for (solver, grid), values in teacher.items():
        for nfe, value in zip((4, 8, 16, 32), values, strict=True):
            if value:
                name = f"teacher-{solver}-{grid}-nfe{nfe}"
                rows.append(_row(name, "teacher", value, nfe, 0.42 * nfe, solver=solver, grid=grid, steps=nfe // 2))
    for steps, value in {16: 0.063, 8: 0.065, 4: 0.069, 2: 0.118, 1: 0.37}.items():
        refused = "Frechet distance 0.37 is above 0.0945" if steps == 1 else ""
        more = {"solver": "ddim", "grid": "own", "refused": refused}
        rows.append(_row(f"student-steps{steps}", "student", value, steps, 0.43 * steps, **more))
    for grid, values in {
        "uniform": (0.19, 0.12, 0.095),
        "log_snr": (0.24, 0.13, 0.09),
        "tuned": (0.13, 0.09, 0.081),
    }.items():
        for nfe, value in zip((4, 6, 8), values, strict=True):
            more = {"solver": "dpmpp_2m", "grid": grid}
            rows.append(_row(f"searched-{grid}-nfe{nfe}", "searched", value, nfe, 0.17 * nfe, **more))
    retrieval = _estimate(0.94, 0.03) | {"choices": 10, "chance": 0.1}
    return {
        "rows": rows,
        "winner": choose_winner(rows),
        "sanity": check_ladder(rows),
        "teacher": "teacher-dpmpp_2m-karras-nfe32",
        "left_out": [{"name": "teacher-ddim-uniform-nfe1", "reason": "1 evaluations pay for no step"}],
        "setup": {
            "samples": 400,
            "samples_asked": 400,
            "test_images": 449,
            "classes": [str(i) for i in range(10)],
            "confidence": 0.95,
            "resamples": 100,
            "seed": 0,
            "noise_seed": 1234567,
            "dataset": "9f2c",
            "hardware": hardware.detect().as_dict(),
            "no_image_text_score_because": "",
            "image_text": {
                "trained": True,
                "training_pairs": 1168,
                "retrieval": retrieval,
                "true_captions": 87.1,
                "shuffled_captions": 17.9,
            },
        },
    }


def _table():
    def row(name, steps, nfe, distance, accepted, reason, seconds):
        return {
            "name": name,
            "steps": steps,
            "nfe": nfe,
            "solver": "ddim",
            "frechet_distance": _estimate(distance),
            "parameters": 412_065,
            "size_mb": 1.6,
            "latency_ms": 0.43 * nfe,
            "latency_batch": 16,
            "train_seconds": seconds,
            "accepted": accepted,
            "reason": reason,
        }

    students = [
        row(f"steps_{n}", n, n, d, n > 1, "0.0945 was allowed" if n > 1 else f"{d} is above 0.0945", 21.4)
        for n, d in {16: 0.063, 8: 0.065, 4: 0.069, 2: 0.09, 1: 0.37}.items()
    ]
    return {
        "teacher": [row("teacher", 32, 64, 0.063, None, "reference", None)],
        "students": students,
        "chosen": 2,
        "gate": {"max_quality_loss": 0.5, "samples": 512, "split": "train"},
    }


def _search():
    trials = [
        {
            "number": i,
            "generation": i // 3,
            "slot": i % 3,
            "state": "COMPLETE",
            "reason": "",
            "architecture": {"width": 16 + 8 * (i % 3), "depth": 1 + i // 3, "attention": "low", "act_fn": "relu"},
            "values": {"error": error, "latency_ms": latency, "peak_memory_mb": memory},
            "parameters": 100_000 * (i + 1),
            "seconds": 11.0,
        }
        for i, (error, latency, memory) in enumerate(
            [(0.41, 5.2, 12.0), (0.33, 8.8, 19.0), (0.30, 13.9, 27.0), (0.38, 9.4, 15.0), (0.29, 21.0, 40.0)]
        )
    ]
    trials.append({**trials[0], "number": 5, "state": "FAIL", "reason": "the loss is not finite", "values": None})
    cost = {"latency_ms": 8.9, "peak_memory_mb": 19.0, "parameters": 200_000, "batch": 16}
    return {
        "objectives": ["error", "latency_ms", "peak_memory_mb"],
        "rule": "the fastest of the front within 0.5 of the best error",
        "limit": 0.435,
        "front": [0, 1, 2, 4],
        "chosen": {"number": 1, "architecture": {}, "trial": trials[1]["values"], "final": {"error": 0.21, **cost}},
        "trials": trials,
        "teacher": {"error": 0.0, "guidance_scale": 1.5, **cost, "latency_ms": 28.0, "peak_memory_mb": 44.0},
    }


def _schedules():
    rng = np.random.default_rng(0)
    rows = [
        {
            "budget": nfe,
            "grid": name,
            "solver": "dpmpp_2m",
            "nfe": nfe - (name == "ppo" and nfe == 8),
            "timesteps": list(
                GRIDS.get(name, log_snr_grid)(SCHEDULE, nfe - (name == "ppo" and nfe == 8), **ends).timesteps
            ),
            "error": scale / nfe,
            "low": 0.94 * scale / nfe,
            "high": 1.06 * scale / nfe,
            "learning_evaluations": spent,
            "learning_seconds": spent / 900,
            "kept": name == ("least_squares" if nfe == 8 else "log_snr_tuned"),
            "learned": {"sigmas": [*np.geomspace(9, 0.1, nfe).tolist(), 0.0]} if name == "least_squares" else None,
        }
        for nfe in (4, 6, 8)
        for name, scale, spent, ends in (
            ("uniform", 0.9, 0, {}),
            ("log_snr", 1.1, 0, {}),
            ("karras", 1.0, 0, {}),
            ("log_snr_tuned", 0.6, 6144, {"t_first": 960, "t_last": 90}),
            ("karras_tuned", 0.61, 6144, {"t_first": 960, "t_last": 90}),
            ("ppo", 0.63, 81_920, {"t_first": 955, "t_last": 120}),
            ("least_squares", 0.3, 72_000, {"t_first": 955, "t_last": 120}),
        )
    ]
    budgets = {
        str(nfe): {
            "methods": {},
            "kept": "least_squares" if nfe == 8 else "log_snr_tuned",
            "rival": "log_snr_tuned",
            "difference": _estimate(0.008),
            "verdict": f"log_snr_tuned is kept, as good as ppo within the noise, and plainer: difference at {nfe}",
            "ppo_batches_agree": True,
        }
        for nfe in (4, 6, 8)
    }
    greedy = [-1 + 0.7 * (1 - math.exp(-i / 5)) + 0.05 * float(rng.normal()) for i in range(16)]
    rewards = [
        {
            "number": i + 1,
            "steps": 128 * (i + 1),
            "episodes": 21 * (i + 1),
            "reward": None if i == 0 else value - 0.1,
            "greedy_reward": value,
            "best_reward": max(greedy[: i + 1]),
            "seconds": 2.0,
            "evaluations": 5120 * (i + 1),
        }
        for i, value in enumerate(greedy)
    ]
    reference = {"steps": 64, "timesteps": [], "evaluations": 64, "seconds": 9.0}
    noises = {"tuning": 64, "selection": 32, "test": 128}
    return {"solver": "dpmpp_2m", "rows": rows, "budgets": budgets, "reference": reference, "noises": noises,
            "rewards": rewards}  # fmt: skip


def _verdict(passed=True):
    champion = Champion("3", {"frechet_distance": Score(*_estimate(0.075).values())})
    scores = {"frechet_distance": _estimate(0.069), "latency_ms": 1.72}
    scores["recall"] = _estimate(0.82 if passed else 0.2, 0.04)
    judged = judge(scores, Gate().limits, champion).to_dict()
    assert judged["passed"] == passed
    return {
        **judged,
        "candidate": "student-steps4",
        "registered": {"name": "digits-sampler", "version": "4", "aliases": ["challenger", "champion"]},
        "promoted": passed,
        "note": "promoted: version 4 of S is champion" if passed else "not promoted: the gate refused",
    }


def _lineage():
    return {
        "run": "manual__2026-02-03T10:00:00+00:00",
        "code": {"commit": "0f692a1c4d5e6f708192a3b4c5d6e7f801234567", "dirty": False},
        "dataset": {"name": "digits", "path": "include/datasets/digits.yaml", "fingerprint": "9f2c"},
        "params_digest": "8d5a6fb01e2c3a47",
        "params": Config().dump(),
        "versions": {"mlx": "0.32.4", "numpy": "2.4.6"},
        "device": hardware.detect().as_dict() | {"system": "Linux"},
    }


def _validate():
    return {
        "images": 1797,
        "accepted": 1794,
        "refused": 3,
        "refused_fraction": 3 / 1797,
        "reasons": {"truncated": 2, "not an image": 1},
        "train_images": 1168,
        "validation_images": 179,
        "test_images": 447,
        "classes": 10,
        "near_duplicate_images": 6,
        "near_duplicates_moved": 2,
        "expectations": 14,
        "expectations_failed": 0,
    }


@functools.cache
def _pictures():
    """PNG bytes of a sample grid and of a denoising strip."""
    digits = load_digits()
    images = np.round(digits.images / 16 * 255).astype(np.uint8)[..., None].repeat(2, 1).repeat(2, 2)
    levels = np.linspace(1, 0, 8)[None, :, None, None, None]
    strip = (1 - levels) * images[:6, None] + levels * np.random.default_rng(1).integers(0, 256, (6, 8, 16, 16, 1))
    return png_bytes(tile(class_rows(images, digits.target))), png_bytes(tile(strip.astype(np.uint8)))


def _write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _comparison():
    """This run beside two earlier ones, one of which was measured on other data."""
    earlier = _scores()
    for row in earlier["rows"]:
        if row["kind"] != "reference":
            row["metrics"]["frechet_distance"] = _estimate(2 * row["metrics"]["frechet_distance"]["value"])
    other = _scores()
    other["setup"] |= {"dataset": "another"}
    runs = {
        "version 4, champion before": (earlier, {"train.steps": 400}),
        "version 3": (other, {"train.steps": 520}),
        "this run": (_scores(), {"train.steps": 520}),
    }
    return {
        "found": compare([RunRecord(name, "made here", params, scores) for name, (scores, params) in runs.items()]),
        "why": "",
        "left_out": [],
    }


def write_workspace(root):
    """A workspace as the other stages leave it, with numbers of the size that a demo run gives."""
    contents = {
        "scores": _scores(),
        "distill": _table(),
        "search": _search(),
        "schedules": _schedules(),
        "verdict": _verdict(),
        "lineage": _lineage(),
        "comparison": _comparison(),
        "data": _validate(),
        "training": {"loss": 0.1},
    }
    for part, value in contents.items():
        write_json(root / SOURCES[part][0], value)
    _write(root / COMPARISON / "0.png", _pictures()[0])
    _write(root / COMPARISON / "2.png", _pictures()[0])
    write_json(root / "work/registered/bundle/scheduler/scheduler_config.json", SCHEDULE.to_config())
    for row in contents["scores"]["rows"]:
        _write(root / "work/scores/grids" / f"{row['candidate']}.png", _pictures()[0])
    for role in ("teacher", "winner"):
        _write(root / "work/scores/grids" / f"strip-{role}.png", _pictures()[1])
    seconds = {"validate": 14.0, "train": 231.0, "distill": 128.0, "search_plan_0": 3.1, "search_trial@0-0": 12.0,
               "search_trial@1-0": 13.0, "search_plan_1": 3.0, "search_select": 61.0, "tune": 74.0, "image_text": 17.0,
               "evaluate": 71.0, "register": 9.0, "report": 1.0}  # fmt: skip
    for target, took in seconds.items():
        record = {
            "target": target,
            "seconds": took,
            "exit_code": 0,
            "peak_memory_mb": 300.0,
            "cached": target == "validate",
        }
        write_json(root / ".run" / "stages" / f"{target}.json", record)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("reported")
    write_workspace(root)
    with open_tracker(root, "report", Config()) as tracker:
        progress = Progress("report", root / ".run" / "progress", echo=lambda *a, **k: None)
        stage.run(StageContext("report", Config(), root, hardware.detect(), tracker, progress))
    return root


@pytest.fixture(scope="module")
def page(workspace):
    return (workspace / "work" / "report" / "report.html").read_text(encoding="utf-8")


class _Links(HTMLParser):
    """Every address the page names, its ids, and whether each tag that opens closes."""

    def __init__(self):
        super().__init__()
        self.addresses, self.ids, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[key] for key in ("src", "href", "data", "action") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def _parsed(page):
    parser = _Links()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_needs_no_network_and_no_other_file(page):
    parser = _parsed(page)
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in parser.addresses)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert {a[1:] for a in parser.addresses if a.startswith("#")} <= set(parser.ids)
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page


def test_the_errors_of_every_method_are_drawn_where_they_are(page):
    chart = re.search(r"Error by network evaluations</h3><figure>(<svg.*?</svg>)", page, flags=re.S)
    root = ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", chart[1]))
    titles = [node.text for node in root.iter("title")]
    assert {"uniform", "PPO", "least squares"} <= {text.split(",")[0] for text in titles}
    assert any(text.startswith("least squares, 8 evaluations: 0.037") for text in titles)
    heights = {}
    for node in root.iter():
        tip = node.find("title")
        if tip is not None and tip.text.startswith("uniform, "):
            heights[int(tip.text.split()[1])] = float(node.get("cy"))
    assert heights[4] < heights[6] < heights[8]  # an error that falls is drawn lower


def test_every_chart_is_whole_svg_with_finite_places_inside_its_frame(page):
    drawn = re.findall(r"<svg viewBox.*?</svg>", page, flags=re.S)
    assert len(drawn) >= 9  # ruler, two of quality, Pareto, three grids, errors, rewards
    for text in drawn:
        root = ElementTree.fromstring(text)
        _, _, width, height = (float(v) for v in root.get("viewBox").split())
        for node in root.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert -1 <= float(node.get(key, 0)) <= width + 1
            for key in ("y", "y1", "y2", "cy"):
                assert -1 <= float(node.get(key, 0)) <= height + 1
        assert root.get("aria-label")
    assert "nan" not in page.lower().replace("finance", "")


def test_the_page_says_the_numbers_of_the_json(workspace, page):
    report = read_json(workspace / "work" / "report" / "report.json")
    text = " ".join(" ".join(_parsed(page).text).split())
    for row in report["scores"]["rows"]:
        assert interval(row["metrics"]["frechet_distance"]) in text
    for row in report["distill"]["students"]:
        assert interval(row["frechet_distance"]) in text and row["reason"] in text
    for budget in report["schedules"]["budgets"]:
        for grid in budget["grids"]:
            assert interval(grid["error"]) in text
    for sentence in report["sentences"]:
        assert sentence in text
    assert "8d5a6fb01e2c3a47" in text and "0f692a1c4d" in text and "within the noise, and plainer" in text
    assert "✗ refused" in text and "✓ champion" in text
    assert "Promoted: version 4 of S is champion." in text


def test_the_result_in_words_follows_from_the_numbers(workspace):
    told = read_json(workspace / "work" / "report" / "report.json")["sentences"]
    # best 0.062, its interval to 0.0713; within it student-steps4 (0.069, 1.72 ms) is the fastest
    assert told[0].startswith(
        "student-steps4 wins: 4 network evaluations and 1.72 ms an image, at a Frechet distance of 0.069"
    )
    assert "score 0.017 by the same ruler, a per-class pixel Gaussian 0.131" in told[1]
    assert (
        "The winner is 7.8 times as fast as the best teacher sampler (teacher-dpmpp_2m-karras-nfe32: 32 evaluations"
        in told[2]
    )
    assert told[3] == (
        "Steps kept, by network evaluations: log SNR, tuned at 4; log SNR, tuned at 6; least squares at 8 "
        "(2.00 times less error than searched end points)."
    )
    assert told[-1] == "The gate passed it."


def test_grids_are_drawn_at_the_log_snr_of_the_registered_schedule(workspace):
    budget = read_json(workspace / "work" / "report" / "report.json")["schedules"]["budgets"][0]
    uniform = next(grid for grid in budget["grids"] if grid["grid"] == "uniform")
    expected = [-2 * math.log(SCHEDULE.sigmas[t]) for t in uniform["timesteps"]]
    assert uniform["log_snr"] == pytest.approx(expected, rel=1e-6)
    assert uniform["log_snr"] == sorted(uniform["log_snr"])


def test_nodes_stand_in_the_chains_order_and_cached_ones_do_not_count_as_work(workspace, page):
    nodes = read_json(workspace / "work" / "report" / "report.json")["nodes"]
    assert [node["target"] for node in nodes] == [
        "validate", "train", "distill", "search_plan_0", "search_trial@0-0", "search_plan_1", "search_trial@1-0",
        "search_select", "tune", "image_text", "evaluate", "register",
    ]  # fmt: skip
    assert "10 min 22 s of work in 11 stages; 1 unchanged" in " ".join(" ".join(_parsed(page).text).split())


def test_earlier_runs_stand_beside_this_one_and_what_does_not_compare_is_said(page):
    section = page.split('<h2 id="earlier">Against earlier runs</h2>')[1].split("<h2 id=")[0]
    text = " ".join(" ".join(_parsed(section).text).split())
    assert "Each run's winner against that of version 4, champion before ." in text
    assert "✓ better" in text and "not comparable (other dataset)" in text
    assert "train.steps 400 520 520" in text
    assert section.count("data:image/png") == 2 and text.count("Its pictures are not kept") == 1


def test_the_first_run_says_that_there_is_nothing_to_compare_with(tmp_path):
    write_workspace(tmp_path)
    write_comparison(tmp_path / COMPARISON, tmp_path, None, None, None)
    text = " ".join(_parsed(render(collect(tmp_path), tmp_path, tmp_path / COMPARISON)).text)
    assert "There is no tracking server, and so no earlier run to compare with." in text


@pytest.mark.parametrize("part", sorted(SOURCES))
def test_a_missing_part_is_named_and_the_rest_still_stands(part, tmp_path):
    write_workspace(tmp_path)
    (tmp_path / SOURCES[part][0]).unlink()
    report = collect(tmp_path)
    assert report["missing"] == [
        {"part": part, "file": SOURCES[part][0], "stage": SOURCES[part][1], "reason": "FileNotFoundError"}
    ]
    text = " ".join(_parsed(render(report, tmp_path / "work/scores/grids", tmp_path / COMPARISON)).text)
    assert (SOURCES[part][0] in text) == (part not in ("lineage", "training"))
    json.dumps(report, allow_nan=False)


def test_an_empty_workspace_gives_a_page_that_says_so(tmp_path):
    report = collect(tmp_path)
    text = " ".join(_parsed(render(report, tmp_path, tmp_path / COMPARISON)).text)
    assert len(report["missing"]) == len(SOURCES)
    assert "no winner" in text and "No stage left a record of its time" in text


def test_a_refusal_is_said_with_its_reasons(tmp_path):
    write_workspace(tmp_path)
    write_json(tmp_path / SOURCES["verdict"][0], _verdict(passed=False))
    report = collect(tmp_path)
    text = " ".join(_parsed(render(report, tmp_path, tmp_path / COMPARISON)).text)
    assert "✗ refused by the gate" in text and "recall is 0.2, must be at least 0.3" in text
    assert report["sentences"][-1] == "The gate refused it: recall is 0.2, must be at least 0.3."


def test_text_from_outside_is_escaped(tmp_path):
    write_workspace(tmp_path)
    verdict = _verdict()
    verdict["note"] = verdict["candidate"] = "<script>alert(1)</script>"
    write_json(tmp_path / SOURCES["verdict"][0], verdict)
    search = _search()
    search["trials"][1]["architecture"]["act_fn"] = '"><script>x</script>'
    write_json(tmp_path / SOURCES["search"][0], search)
    assert "<script" not in render(collect(tmp_path), tmp_path, tmp_path / COMPARISON)


def test_one_trial_one_grid_and_no_rewards_still_draw(tmp_path):
    write_workspace(tmp_path)
    search, schedules = _search(), _schedules()
    search |= {"trials": search["trials"][1:2], "front": [1]}
    one = {**schedules["rows"][0], "kept": True}
    schedules |= {"rows": [one], "budgets": {"4": schedules["budgets"]["4"]}, "rewards": []}
    write_json(tmp_path / SOURCES["search"][0], search)
    write_json(tmp_path / SOURCES["schedules"][0], schedules)
    assert "nan" not in render(collect(tmp_path), tmp_path, tmp_path / COMPARISON)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.06234, "0.0623"), (1234567, "1,234,567"), (12.0, "12"), (-0.00012, "−0.00012"), (0, "0"), (None, "–"),
     (3.2e-9, "3.2 × 10⁻⁹"), (99.96, "100"), (0.1 + 0.2, "0.3")],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


def test_durations_are_written_for_people():
    assert [duration(s) for s in (None, 4.24, 59.94, 65, 3720)] == ["–", "4.2 s", "59.9 s", "1 min 05 s", "1 h 02 min"]


def test_axes_put_values_where_they_belong():
    linear, log = Axis(0, 10, 100, 200), Axis(1, 100, 0, 300, log=True)
    assert [linear(0), linear(5), linear(10)] == [100, 150, 200]
    assert [log(1), log(10), log(100)] == pytest.approx([0, 150, 300])
    assert [text for _, text in Axis(0, 1, 0, 1).ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    over = axis_over([0.02, 5], 0, 1, log=True)
    assert over.low < 0.02 and over.high > 5 and len(over.ticks) >= 3
    assert axis_over([2.0], 0, 1).low < 2 < axis_over([2.0], 0, 1).high
