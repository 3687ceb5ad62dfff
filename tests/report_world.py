"""A workspace as a finished run leaves it, for tests of the report: every file that the report reads."""

import functools
import math

import numpy as np
from sklearn.datasets import load_digits

from mlx_tasks import hardware
from mlx_tasks.comparison.compare import compare
from mlx_tasks.comparison.records import RunRecord
from mlx_tasks.config import Config, Gate
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.files import write_json
from mlx_tasks.metrics.ladder import check_ladder
from mlx_tasks.metrics.pictures import class_rows, png_bytes, tile
from mlx_tasks.metrics.winner import choose_winner
from mlx_tasks.registry.gate import Champion, Score, judge
from mlx_tasks.report.collect import SOURCES
from mlx_tasks.samplers.grids import karras_grid, log_snr_grid, uniform_grid

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
            "resolution": 16,
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
    references = {"gaussian": {"frechet_distance": 0.15}, "real": {"recall": 0.9}}
    judged = judge(scores, Gate().limits, champion, references=references).to_dict()
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
               "score_share@10": 20.0, "score_share@2": 30.0, "evaluate": 21.0, "register": 9.0,
               "report": 1.0}  # fmt: skip
    for target, took in seconds.items():
        record = {
            "target": target,
            "seconds": took,
            "exit_code": 0,
            "peak_memory_mb": 300.0,
            "cached": target == "validate",
        }
        write_json(root / ".run" / "stages" / f"{target}.json", record)
