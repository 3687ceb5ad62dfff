"""Does stopping each image where it is good enough beat giving all of them the same number of steps?

    python benchmarks/quality_guided.py work/searched [--seeds 3]     # draws docs/pictures/quality_guided.svg too

For each seed, tolerance and patience: the mean evaluations an image takes and the mean error it has, on noises that
neither calibration nor search saw; the error of fixed grids (ends searched at each number of steps) at the same mean,
interpolated between whole numbers of steps; the share stopped too early; and an oracle that stops each image at the
first call whose estimate is within the tolerance.  Besides, how good the two predictions are: the expected error of a
call against the one it has, over all calls, and the share promised to be kept against the share kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pictures import COLOURS, MARKERS, TEXT, panels
from record import hardware, save

hardware.prepare()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from mlx_tasks.learned_steps.methods import tuned_grids  # noqa: E402
from mlx_tasks.learned_steps.quality_guided import QualityGuidedSampler  # noqa: E402
from mlx_tasks.models.bundle import read_bundle  # noqa: E402
from mlx_tasks.rl.problem import bundle_problem, endpoint_errors  # noqa: E402
from mlx_tasks.samplers import network_denoiser  # noqa: E402

STEPS = (3, 4, 5, 6, 8, 10, 12)


def main() -> None:
    """Calibrate, draw, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noises", type=int, default=256)
    parser.add_argument("--coverage", type=float, default=0.9)
    given = parser.parse_args()
    bundle = read_bundle(given.bundle)
    classes = len(bundle.sampler.class_names)

    def rows_of(rows: np.ndarray) -> Any:
        labels = mx.array((rows % classes).astype(np.int32)) if classes else None
        return network_denoiser(
            bundle.model, bundle.schedule, labels, bundle.sampler.guidance_scale, bundle.sampler.null_label
        )

    out: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        sets = {
            purpose: bundle_problem(bundle, "dpmpp_2m", seed, purpose, count, batch, 64)[0]
            for purpose, count, batch in (
                ("tuning", 64, 32),
                ("selection", given.noises, given.noises),
                ("test", given.noises, given.noises),
            )
        }
        fixed = {}
        for n in STEPS:
            grid = min(tuned_grids(sets["tuning"], n, 48, seed).values(), key=lambda found: found.error).grid
            fixed[n] = (grid, float(sets["test"].errors(grid).mean()))
        longest = fixed[max(STEPS)][0]
        held, test = sets["selection"].tasks[0], sets["test"].tasks[0]
        sampler = QualityGuidedSampler.calibrate(rows_of, held.noise, held.truth, longest.sigmas)
        for tolerance in (0.02, 0.04, 0.08):
            for patience in (1, 2):
                drawn = sampler.sample(rows_of, test.noise, tolerance, coverage=given.coverage, patience=patience)
                errors = endpoint_errors(np.array(drawn.images), test.truth)
                mean = float(drawn.nfe.mean())
                same = float(np.interp(mean, STEPS, [fixed[n][1] for n in STEPS]))
                row = {"seed": seed, "tolerance": tolerance, "patience": patience, "mean_nfe": mean}
                row |= {"error": float(errors.mean()), "fixed_error_at_that_mean": same}
                row |= {"stopped": float(drawn.early.mean())}
                row |= {
                    "too_early": float((drawn.early & (errors > tolerance)).mean()),
                    **_oracle(rows_of, test, longest, tolerance),
                }
                out.append(row)
                print(row, flush=True)
        out.append({"seed": seed, "fixed": {n: error for n, (_, error) in fixed.items()}})
        print(out[-1], flush=True)
        out.append({"seed": seed, **predictions(sampler, rows_of, test, longest)})
        print(out[-1], flush=True)
    draw([row for row in out if "remaining" in row])
    config = {**vars(given), "bundle": bundle.digest, "steps": list(STEPS)}
    question = "Does stopping each image where it is good enough beat a fixed number of steps?"
    print(save("quality_guided", question=question, config=config, rows=out))


def predictions(sampler: QualityGuidedSampler, rows_of: Any, test: Any, grid: Any) -> dict[str, Any]:
    """remaining: expected and measured error in tenths of (call, image) pairs by the first; kept: promised and true."""
    from mlx_tasks.learned_steps.quality_guided import _run

    expected, measured = [], []
    steps = enumerate(_run(rows_of(np.arange(len(test.noise))), test.noise, grid.sigmas), start=1)
    for step, (change, estimate) in steps:
        if step > 1:
            expected.append(sampler.expected(step, change))
            measured.append(endpoint_errors(np.array(estimate), test.truth))
    order = np.argsort(np.concatenate(expected))
    told, true = np.concatenate(expected)[order], np.concatenate(measured)[order]
    remaining = [
        {"expected": float(np.median(a)), "measured": float(np.median(b)),
         "low": float(np.quantile(b, 0.1)), "high": float(np.quantile(b, 0.9))}
        for a, b in zip(np.array_split(told, 10), np.array_split(true, 10), strict=True)
    ]  # fmt: skip
    kept = []
    for tolerance in (0.02, 0.04, 0.08):
        for coverage in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            drawn = sampler.sample(rows_of, test.noise, tolerance, coverage=coverage)
            errors = endpoint_errors(np.array(drawn.images), test.truth)
            true_share = 1 - float((drawn.early & (errors > tolerance)).mean())
            kept.append({"tolerance": tolerance, "promised": coverage, "kept": true_share})
    return {"remaining": remaining, "kept": kept}


def draw(rows: list[dict[str, Any]]) -> None:
    """Both predictions, all seeds."""
    with panels("quality_guided", 2) as (left, right):
        for row, colour, marker in zip(rows, COLOURS, MARKERS, strict=False):
            told = [one["expected"] for one in row["remaining"]]
            true = [one["measured"] for one in row["remaining"]]
            around = [
                [one["measured"] - one["low"] for one in row["remaining"]],
                [one["high"] - one["measured"] for one in row["remaining"]],
            ]
            left.errorbar(told, true, around, fmt=marker, color=colour, markersize=4, linewidth=1,
                          label=f"seed {row['seed']}")  # fmt: skip
        ends = [min(one["expected"] for row in rows for one in row["remaining"]),
                max(one["expected"] for row in rows for one in row["remaining"])]  # fmt: skip
        left.plot(ends, ends, color=TEXT, linewidth=1, linestyle="--")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("expected remaining error (tenths of all calls)")
        left.set_ylabel("measured error: median, 10 to 90 %")
        left.legend()
        tolerances = sorted({one["tolerance"] for one in rows[0]["kept"]})
        for tolerance, colour, marker in zip(tolerances, COLOURS, MARKERS, strict=False):
            ours = [one for row in rows for one in row["kept"] if one["tolerance"] == tolerance]
            right.plot([one["promised"] for one in ours], [one["kept"] for one in ours], marker, color=colour,
                       markersize=4, label=f"tolerance {tolerance:g}")  # fmt: skip
        right.plot([0.5, 1], [0.5, 1], color=TEXT, linewidth=1, linestyle="--")
        right.set_xlabel("share promised not to be stopped too early")
        right.set_ylabel("share that was not")
        right.legend()


def _oracle(rows_of: Any, test: Any, grid: Any, tolerance: float) -> dict[str, float]:
    """What stopping would give that knew each image's error at each call."""
    from mlx_tasks.learned_steps.quality_guided import _run

    errors = []
    for _, estimate in _run(rows_of(np.arange(len(test.noise))), test.noise, grid.sigmas):
        errors.append(endpoint_errors(np.array(estimate), test.truth))
    table = np.stack(errors)
    good = table <= tolerance
    first = np.where(good.any(axis=0), good.argmax(axis=0), len(table) - 1)
    return {"oracle_nfe": float(first.mean() + 1), "oracle_error": float(table[first, np.arange(len(first))].mean())}


if __name__ == "__main__":
    main()
