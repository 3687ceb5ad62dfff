"""`mlx-tasks optimize` on a real small bundle: steps within a budget, the fewest that are good enough, the bundle."""

import base64
import io
import json
import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from registry_workspace import write_small_bundle

from mlx_tasks.cli import main
from mlx_tasks.data.loader import to_uint8
from mlx_tasks.errors import DataError, ExitCode
from mlx_tasks.learned_steps.methods import Effort
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.models.digests import check_digests, write_digests_beside
from mlx_tasks.optimizing import device_cost
from mlx_tasks.optimizing.bundle_update import put_sampler
from mlx_tasks.optimizing.commands import milliseconds
from mlx_tasks.optimizing.device_cost import StepCost
from mlx_tasks.optimizing.optimizer import Optimizer
from mlx_tasks.registry.reference import make_reference, read_reference, write_reference
from mlx_tasks.report.svg import number
from mlx_tasks.samplers import sample_bundle
from mlx_tasks.samplers.driver import Samples

QUICK = ["--tries", "4", "--iterations", "2", "--noises", "8", "--batch", "2", "--methods", "least_squares"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bundle") / "b"
    write_small_bundle(made)
    return made


@pytest.fixture(scope="module")
def optimizer(folder):
    effort = Effort(tries=4, iterations=2, seed=0)
    return Optimizer(
        read_bundle(folder), effort, noises=16, batch_size=4, reference_steps=24, methods=("shortest_path",)
    )


def test_the_fewest_good_enough_are_those_of_a_scan(optimizer):
    scanned = {n: optimizer.at(n).best for n in range(1, 6)}
    for quality in (scanned[2]["high"], scanned[4]["high"] * 1.001):
        found = optimizer.fewest(quality, most=5)
        holding = [n for n, best in scanned.items() if best["high"] <= quality]
        assert found.num_steps == min(holding)
    with pytest.raises(DataError, match=r"an error of 1e-09 is not reached in 5 steps: they have .*; ask for less"):
        optimizer.fewest(1e-9, most=5)


def test_errors_are_those_of_the_sampler_that_is_put_in(optimizer, folder, tmp_path):
    outcome = optimizer.at(4)
    assert outcome.best["error"] <= 1.05 * min(row["error"] for row in outcome.rows.values())
    put_sampler(folder, tmp_path / "o", optimizer.sampler(outcome), {"why": "a test"})
    bundle = read_bundle(tmp_path / "o")
    assert bundle.sampler.nfe == 4 and bundle.lineage["optimized"] == {"why": "a test"}
    test = optimizer._problems["test"]
    labels = [i % 3 for i in range(16)]
    noise = mx.concatenate([task.noise for task in test.tasks])
    drawn = np.array(sample_bundle(bundle, noise, labels).images)
    truth = np.concatenate([task.truth for task in test.tasks])
    errors = np.sqrt(((drawn - truth) ** 2).mean(axis=(1, 2, 3)))
    assert errors.mean() == pytest.approx(outcome.best["error"], rel=1e-3)


def test_the_curve_holds_default_grids_everywhere_and_what_was_searched(optimizer):
    optimizer.at(4)
    rows = optimizer.curve()
    assert {row["nfe"] for row in rows if row["method"] == "uniform"} >= {2, 3, 4, 6, 8, 12, 16, 24}
    by_nfe = {row["nfe"]: row["error"] for row in rows if row["method"] == "log_snr"}
    assert by_nfe[24] < by_nfe[4]
    searched = next(row for row in rows if (row["method"], row["nfe"]) == ("shortest_path", 4))
    assert searched["error"] == optimizer.at(4).rows["shortest_path"]["error"]


def test_steps_within_a_budget():
    cost = StepCost(16, step_ms=3.0, step_low_ms=2.9, step_high_ms=3.2, fixed_ms=1.0, chip="M9")
    assert [cost.steps_within(ms) for ms in (4.0, 6.9, 7.0, 80.0)] == [1, 1, 2, 26]
    with pytest.raises(
        DataError, match=r"a budget of 2 ms an image is less than one step takes: 4 ms in batches of 16 on M9"
    ):
        cost.steps_within(2.0)


def test_the_cost_is_the_slope_between_two_lengths_and_what_is_left(folder, monkeypatch):
    """A clock that a run moves by 20 ms and by 6 ms a step, and once by an hour while the first one warms up."""
    clock, runs = [0.0], []

    def run(bundle, noise, labels, grid, solver, batch_size):
        runs.append(grid.num_steps)
        clock[0] += 3600 if len(runs) <= 2 else 0.020 + 0.006 * grid.num_steps
        return Samples(noise, grid.num_steps)

    monkeypatch.setattr(device_cost, "sample_bundle", run)
    monkeypatch.setattr(device_cost.time, "perf_counter", lambda: clock[0])
    cost = device_cost.measure_cost(read_bundle(folder), 4, "here")
    assert runs == [2, 8] * 6
    assert (cost.step_ms, cost.step_low_ms, cost.step_high_ms) == pytest.approx((1.5, 1.5, 1.5))
    assert cost.fixed_ms == pytest.approx(5.0) and cost.run_ms(16) == pytest.approx(29.0)


@pytest.mark.parametrize(("text", "ms"), [("80", 80.0), ("80ms", 80.0), ("0.08s", 80.0), (" 2.5 ms ", 2.5)])
def test_budgets_are_times(text, ms):
    assert milliseconds(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "fast", "-3ms", "0", "80 min"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(DataError, match="a time above 0 such as 80ms"):
        milliseconds(text)


def test_the_command_writes_a_bundle_that_draws_with_what_it_found(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["optimize", "--model", str(folder), "--nfe", "3", "--out", str(out), "--json", *QUICK]) == 0
    told = json.loads(capsys.readouterr().out)
    bundle = read_bundle(out)
    assert bundle.sampler.nfe == 3 == told["steps"]
    assert bundle.lineage["optimized"]["verdict"] == told["verdict"]
    assert told["methods"][told["method"]]["timesteps"] == list(bundle.sampler.timesteps)
    assert told["before"]["timesteps"] == [999, 500]
    assert read_bundle(folder).sampler.timesteps == (999, 500)


def test_a_dry_run_writes_nothing_and_prints_tables(folder, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    command = ["optimize", "--model", str(folder), "--quality", "2.0", "--dry-run", "--diffusers"]
    assert main([*command, *QUICK[:-1], "shortest_path"]) == 0
    shown = capsys.readouterr().out
    assert "1 steps" in shown or "1 step" in shown
    assert "Error by network evaluations" in shown and "written" not in shown
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


def test_the_page_shows_what_the_json_says_and_images_from_the_same_noises(folder, tmp_path, capsys):
    page, command = tmp_path / "steps.html", ["optimize", "--model", str(folder), "--nfe", "3", "--dry-run"]
    assert main([*command, "--page", str(page), "--json", *QUICK]) == 0
    told, html = json.loads(capsys.readouterr().out), page.read_text()
    from mlx_tasks.report.charts import grid_name

    assert f"The best 3 steps: {grid_name(told['method'])}" in html
    for row in told["methods"].values():
        assert number(row["error"]) in html
    for row in told["curve"]:
        assert f"{row['nfe']} evaluations: {number(row['error'])} [{number(row['low'])}, {number(row['high'])}]" in html
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall(r'base64,([^"]+)"', html)]
    assert len(pictures) == 4 and "://" not in re.sub(r'xmlns="[^"]+"', "", html)
    kept, before, plain, many = (np.asarray(one).astype(int) for one in pictures)
    assert np.abs(kept - many).mean() < np.abs(before - many).mean() and np.abs(plain - many).mean() > 0


def test_what_is_shown_is_what_the_steps_draw(optimizer):
    outcome, noise = optimizer.at(4), mx.concatenate([task.noise for task in optimizer._problems["test"].tasks])
    shown = {one.name: one for one in optimizer.shown(outcome, count=5)}
    drawn = sample_bundle(
        replace(optimizer.bundle, sampler=optimizer.sampler(outcome)), noise, [i % 3 for i in range(16)]
    )
    assert np.abs(shown[outcome.kept].images.astype(int) - to_uint8(np.array(drawn.images))[:5]).max() <= 1
    assert shown[outcome.kept].nfe == 4 and shown[outcome.kept].error == pytest.approx(outcome.best["error"], rel=1e-5)
    own = sample_bundle(optimizer.bundle, noise, [i % 3 for i in range(16)])
    assert np.abs(shown["before"].images.astype(int) - to_uint8(np.array(own.images))[:5]).max() <= 1
    assert shown["many_steps"].nfe == 24 and shown["many_steps"].error == 0 and shown["before"].error > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nfe", "4", "--page", "."], "--page is a file to write, in a folder that there is, got ."),
        (["--nfe", "0"], "--nfe must be at least 1"),
        (["--nfe", "4", "--methods", "magic"], "no method named 'magic'"),
        (["--budget", "soon"], "a time above 0"),
        (["--quality", "-1"], "--quality is a distance above 0"),
        (["--quality", "nan"], "--quality is a distance above 0"),
        (["--nfe", "4", "--noises", "0"], "--noises must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(folder, capsys, arguments, message):
    assert main(["optimize", "--model", str(folder), *arguments]) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err


def test_the_card_stays_and_the_reference_is_drawn_again(folder, tmp_path, optimizer):
    import shutil

    copied = tmp_path / "b"
    shutil.copytree(folder, copied)
    (copied / "README.md").write_text("the card")
    write_digests_beside(copied)
    held_out = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    write_reference(copied, make_reference(read_bundle(copied), held_out, 9))
    old = read_reference(copied)
    put_sampler(copied, copied, optimizer.sampler(optimizer.at(4)), {})
    check_digests(copied)
    new = read_reference(copied)
    assert (copied / "README.md").read_text() == "the card"
    np.testing.assert_array_equal(new.held_out, old.held_out)
    again = make_reference(read_bundle(copied), held_out, 9)
    np.testing.assert_allclose(new.generated, again.generated, atol=1e-5)
    assert new.frechet_distance == pytest.approx(again.frechet_distance, rel=1e-4)
    assert not np.allclose(new.generated, old.generated, atol=1e-3)
