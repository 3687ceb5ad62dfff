"""What does giving each class the evaluations it needs save, and does the promise hold on fresh noise?

    python benchmarks/pattern_dataset.py FOLDER --kinds digits letters photographs textures abstracts --side 16
    (a teacher trained on it: mlx-tasks resolve --preset demo --set data.path=FOLDER --write; validate; train)
    python benchmarks/steps_by_class.py work/teacher --guidance 1.0 [--seeds 3]

For each seed an `AdaptiveScheduler` is fitted; for each quality and coverage, on `--noises` fresh noises of each class:
the share of each class within the quality, the mean evaluations an image takes, and beside it
  same_promise   one number for all that keeps the same promise to every class
  same_share     one number for all with as many images within the quality (linear between those that were learned)
  same_error     one number for all with the same mean error (log-linear between those that were learned)
  oracle         an oracle that knows every image's error and gives it the fewest evaluations within the quality
`saved_*` is how many evaluations fewer each image takes than there; `oracle_saved` what the oracle saves against
`same_share` at its own share.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import hardware, save

hardware.prepare()

import numpy as np  # noqa: E402

from mlx_tasks.errors import DataError  # noqa: E402
from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.optimizing.adaptive import AdaptiveScheduler  # noqa: E402
from mlx_tasks.pipeline import DiffusionPipeline  # noqa: E402


def main() -> None:
    """Fit, draw, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--noises", type=int, default=100, help="fresh ones of each class")
    parser.add_argument("--calibration", type=int, default=100, help="noises of each class that promises rest on")
    parser.add_argument("--nfe", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--qualities", type=float, nargs="+", default=[0.06, 0.08, 0.1, 0.12, 0.15, 0.2])
    parser.add_argument("--coverages", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--guidance", type=float, help="another scale than the bundle's")
    parser.add_argument("--schedulers", type=Path, default=Path("work/schedulers"), help="where fits are kept")
    parser.add_argument("--name", default="steps_by_class")
    given = parser.parse_args()
    bundle = read_bundle(given.bundle)
    if given.guidance is not None:
        branches = 1 if given.guidance in (0.0, 1.0) else 2
        own = {"guidance_scale": given.guidance, "nfe": branches * len(bundle.sampler.timesteps)}
        bundle = replace(bundle, sampler=replace(bundle.sampler, **own, solver="dpmpp_2m", learned=None))
    rows: list[dict[str, Any]] = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        rows += one_seed(bundle, seed, given)
    config = {key: value for key, value in vars(given).items() if key not in ("bundle", "name", "schedulers")}
    config |= {"bundle": bundle.digest, "classes": list(bundle.sampler.class_names)}
    print(save(given.name, question="What does giving each class what it needs save?", config=config, rows=rows))


def one_seed(bundle: Bundle, seed: int, given: Any) -> list[dict[str, Any]]:
    """The rows of one seed."""
    pipe = DiffusionPipeline(bundle)
    told = {"tell": lambda text: print(f"seed {seed}: {text}", flush=True), "seed": seed}
    kept = given.schedulers / f"{bundle.digest[:12]}-{'-'.join(map(str, given.nfe))}-{given.calibration}-{seed}.json"
    if kept.is_file():
        fitted = AdaptiveScheduler.load(kept)
    else:
        fitted = AdaptiveScheduler.fit(
            pipe, given.nfe, calibration=given.calibration, methods=("least_squares",), tries=48, **told
        )
        fitted.save(kept)
    optimizer = pipe._optimizer(noises=1, **told)
    fresh = optimizer.errors_by_class(fitted.samplers, given.noises, "fresh")
    budgets = np.array(sorted(fresh), float)
    errors = np.stack([fresh[int(nfe)] for nfe in budgets])  # (budgets, classes, N)
    means = {int(nfe): [float(v) for v in one.mean(axis=1)] for nfe, one in zip(budgets, errors, strict=True)}
    spread = float(np.log(errors).std(axis=(1, 2)).mean())
    rows: list[dict[str, Any]] = [{"seed": seed, "mean_errors_by_class": means, "log_spread": spread}]
    print(rows[0], flush=True)
    for quality in given.qualities:
        for coverage in given.coverages:
            try:
                needed = fitted.needed(quality, coverage)
            except DataError as error:
                rows.append({"seed": seed, "quality": quality, "coverage": coverage, "refused": str(error)})
                continue
            rows.append(
                {"seed": seed, "quality": quality, "coverage": coverage, **compared(budgets, errors, needed, quality)}
            )
            print(rows[-1], flush=True)
    return rows


def compared(budgets: np.ndarray, errors: np.ndarray, needed: np.ndarray, quality: float) -> dict[str, Any]:
    """What `needed` (classes,) evaluations give, beside one number for all; errors: (budgets, classes, N)."""
    chosen = errors[np.searchsorted(budgets, needed), np.arange(len(needed))]
    within, mean = chosen <= quality, float(needed.mean())
    share, error = float(within.mean()), float(chosen.mean())
    good = errors <= quality
    oracle = budgets[np.where(good.any(axis=0), good.argmax(axis=0), len(budgets) - 1)]
    fixed = {
        "same_promise": float(needed.max()),
        "same_share": at_share(budgets, errors, quality, share),
        "same_error": at_error(budgets, errors, error),
    }
    reached = float(good.any(axis=0).mean())
    return {
        "needed": needed.tolist(),
        "mean_nfe": mean,
        "within_by_class": [float(v) for v in within.mean(axis=1)],
        "within": share,
        "error": error,
        **fixed,
        **{f"saved_{name}": 1.0 - mean / nfe for name, nfe in fixed.items()},
        "oracle": float(oracle.mean()),
        "oracle_within": reached,
        "oracle_saved": 1.0 - float(oracle.mean()) / at_share(budgets, errors, quality, reached),
    }


def at_share(budgets: np.ndarray, errors: np.ndarray, quality: float, share: float) -> float:
    """Evaluations for all at which that share of all images is within the quality."""
    shares = np.maximum.accumulate((errors <= quality).mean(axis=(1, 2)))
    return float(np.interp(share, shares, budgets))


def at_error(budgets: np.ndarray, errors: np.ndarray, error: float) -> float:
    """Evaluations for all at which the mean error is that."""
    logs = np.minimum.accumulate(np.log(errors.mean(axis=(1, 2))))
    return float(np.interp(-np.log(error), -logs, budgets))


if __name__ == "__main__":
    main()
