"""The report: one HTML file that needs nothing else, saying the same numbers as its JSON, whatever is missing."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from report_world import COMPARISON, SCHEDULE, _schedules, _search, _verdict, write_workspace
from sklearn.datasets import load_digits

from mlx_tasks import hardware
from mlx_tasks.comparison.earlier import write_comparison
from mlx_tasks.config import Config
from mlx_tasks.files import read_json, write_json
from mlx_tasks.metrics.pictures import first_of_rows
from mlx_tasks.progress import Progress
from mlx_tasks.registry.png import decode_png
from mlx_tasks.report.advice import advice
from mlx_tasks.report.charts import interval
from mlx_tasks.report.collect import SOURCES, collect
from mlx_tasks.report.render import duration, render
from mlx_tasks.report.svg import Axis, axis_over, number
from mlx_tasks.stages import report as stage
from mlx_tasks.stages.context import StageContext
from mlx_tasks.tracking.mlflow_tracker import open_tracker


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


def test_every_schedule_shows_what_it_makes_of_the_same_noise(workspace, page):
    scores = read_json(workspace / "work" / "scores" / "scores.json")
    searched = [row for row in scores["rows"] if row["kind"] == "searched"]
    assert searched and page.count("one image a class") == len(searched)
    sheet = (workspace / "work" / "scores" / "grids" / f"{searched[0]['candidate']}.png").read_bytes()
    digits = load_digits()
    firsts = [np.round(digits.images[digits.target == c][0] / 16 * 255) for c in range(10)]
    strip = decode_png(first_of_rows(sheet, 16))[..., 0]
    factor = strip.shape[1] // (10 * 18 + 2)
    for c, image in enumerate(firsts):
        left = 2 + c * 18
        np.testing.assert_array_equal(
            strip[::factor, ::factor][2:18, left : left + 16], image.repeat(2, 0).repeat(2, 1).astype(np.uint8)
        )
    assert first_of_rows(sheet, 15) is None


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
        "search_select", "tune", "image_text", "score_share@2", "score_share@10", "evaluate", "register",
    ]  # fmt: skip
    assert "10 min 22 s of work in 13 stages; 1 unchanged" in " ".join(" ".join(_parsed(page).text).split())


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
    assert (
        "✗ refused by the gate" in text
        and "recall is 0.2, must be at least 0.315" in text
        and "0.35 × the set real" in text
    )
    assert report["sentences"][-1] == (
        "The gate refused it: recall is 0.2, must be at least 0.315, 0.35 times what the set real scores."
    )


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


def _row(value):
    return {"metrics": {"frechet_distance": {"value": value}}}


def test_a_winner_that_a_gaussian_beats_is_told_to_train_longer_and_what_that_costs():
    ruler, training = {"reference-gaussian": _row(0.3)}, {"steps": 520, "seconds": 132.0}
    (told,) = advice(_row(0.8), _row(0.7), ruler, training)
    assert "worse than a per-class Gaussian (Frechet distance 0.8 against 0.3): train longer (train.steps)" in told
    assert "520 steps took 2.2 minutes here, so twice as many take 4.4 minutes" in told
    assert advice(_row(0.8), None, ruler, None)[0].endswith("train longer (train.steps).")
    (told,) = advice(_row(0.8), _row(0.1), ruler, training)
    assert "distil longer" in told and "train longer" not in told
    assert advice(_row(0.3), _row(0.7), ruler, training) == []
    assert advice(_row(0.8), _row(0.7), {}, training) == advice(None, None, ruler, training) == []
