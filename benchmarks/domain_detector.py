"""How well are domains told apart, and which sampler settings suit each? Writes include/domains.json and the result.

    python benchmarks/domain_detector.py

1. The detector is fitted on 3,000 images of each domain and calibrated on 900 others, then asked about held-out images
   of the same sources (other writers, draws, halves of photographs), of sources it never saw (other typefaces, another
   photograph, other pattern families), and of no domain at all; singly and in sets of 64.
2. For each domain the exact denoiser of 256 of its images, each smeared by a Gaussian of 0.15, is sampled at 8 calls
   by every solver, grid and pair of end points, and compared with 200 steps of Heun. The eight with the least mean
   squared error on 64 noises are compared again on 512 others, where the least one wins; its error is told on 512 more.
"""

from __future__ import annotations

import itertools

import numpy as np
from record import ROOT, save

from mlx_tasks import hardware

hardware.prepare()

import mlx.core as mx  # noqa: E402

from mlx_tasks.diffusion import NoiseSchedule  # noqa: E402
from mlx_tasks.domains.detector import UNKNOWN, Detector, fit_detector  # noqa: E402
from mlx_tasks.domains.examples import DOMAINS, draw, outsiders, typeset_digits  # noqa: E402
from mlx_tasks.domains.features import features  # noqa: E402
from mlx_tasks.domains.settings import SamplerSettings  # noqa: E402
from mlx_tasks.files import write_json  # noqa: E402
from mlx_tasks.rl.comparison import DEFAULT_GRIDS  # noqa: E402
from mlx_tasks.samplers import SOLVERS, karras_grid, keyed_noise, sample  # noqa: E402

SIZES = (8, 16, 32)
SEED, FIT, CALIBRATE, TEST, SET_SIZE, SETS = 0, 3000, 900, 900, 64, 30
CALLS, SMEAR, CENTRES, NOISES, FINAL_NOISES, FINALISTS = 8, 0.15, 256, 64, 512, 8
SIGMAS_FIRST, SIGMAS_LAST = (20_000.0, 80.0, 20.0, 8.0), (0.0064, 0.03, 0.08, 0.2)


def main() -> None:
    """Fit, measure, store."""
    rng = np.random.default_rng(SEED)
    detector = fit_detector(statistics("fit", FIT, rng), statistics("calibrate", CALIBRATE, rng))
    rows = [accuracy(detector, part, rng) for part in ("test", "unseen")]
    rows += [called(detector, kind, images) for kind, images in outsiders(SET_SIZE, 16, rng).items()]
    rows.append(called(detector, "typeset digits", typeset_digits(SET_SIZE, 16, rng)))
    settings, measured = best_settings(rng)
    write_json(ROOT / "include" / "domains.json", {"detector": detector.to_dict(), "settings": settings})
    config = {"seed": SEED, "sizes": SIZES, "fit": FIT, "calibrate": CALIBRATE, "test": TEST, "set_size": SET_SIZE}
    path = save(
        "domain_detector",
        question="How well are image domains told apart, and which sampler settings suit each?",
        config=config
        | {"calls": CALLS, "smear": SMEAR, "centres": CENTRES, "noises": NOISES, "final_noises": FINAL_NOISES},
        rows=rows + measured,
    )
    for row in rows + measured:
        print(row)
    print(path)


def statistics(part: str, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Statistics of each domain's images, over the sizes in equal shares."""
    return {
        name: np.concatenate([features(draw(name, part, count // len(SIZES), size, rng)) for size in SIZES])
        for name in DOMAINS
    }


def accuracy(detector: Detector, part: str, rng: np.random.Generator) -> dict:
    """Share of images and of sets named rightly, and how far stated chances are from what comes true."""
    names = (*detector.names, UNKNOWN)
    confusion, stated, right, named, sets = {}, [], [], [], {}
    for name, values in statistics(part, TEST, rng).items():
        posteriors = detector.posteriors(values)
        answers = np.where(detector.strange(values), len(names) - 1, posteriors.argmax(axis=1))
        confusion[name] = {other: int((answers == i).sum()) for i, other in enumerate(names)}
        stated.append(posteriors.max(axis=1))
        right.append(posteriors.argmax(axis=1) == names.index(name))
        named.append(answers == names.index(name))
        guesses = [
            detector.guess(draw(name, part, SET_SIZE, size, rng)).name for size in SIZES for _ in range(SETS // 3)
        ]
        sets[name] = {guess: guesses.count(guess) for guess in dict.fromkeys(guesses)}
    chance, hit = np.concatenate(stated), np.concatenate(right)
    return {
        "part": part,
        "image_accuracy": float(np.concatenate(named).mean()),
        "set_accuracy": float(np.mean([counts.get(name, 0) / SETS for name, counts in sets.items()])),
        "calibration_error": calibration_error(chance, hit),
        "images": len(hit),
        "sets": SETS * len(sets),
        "confusion": confusion,
        "set_answers": sets,
    }


def calibration_error(chance: np.ndarray, hit: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |stated - true| averaged over bins of the stated chance, weighted by their images."""
    index = np.minimum((chance * bins).astype(int), bins - 1)
    gaps = [abs(chance[index == b].mean() - hit[index == b].mean()) * (index == b).mean() for b in set(index)]
    return float(np.sum(gaps))


def called(detector: Detector, kind: str, images: np.ndarray) -> dict:
    """What a set of no known domain is called."""
    guess = detector.guess(images)
    return {"outsider": kind, "called": guess.name, "probability": guess.probability}


def best_settings(rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """The best settings of each domain and over all of them, and their errors on fresh noise."""
    schedule = NoiseSchedule.cosine()
    candidates = [SamplerSettings(*c) for c in itertools.product(SOLVERS, DEFAULT_GRIDS, SIGMAS_FIRST, SIGMAS_LAST)]
    plain = SamplerSettings("ddim", "uniform", SIGMAS_FIRST[0], SIGMAS_LAST[0])
    denoisers = {name: smeared_denoiser(draw(name, "fit", CENTRES, 16, rng)) for name in DOMAINS}
    first = np.stack([errors(denoise, schedule, candidates, 1, NOISES) for denoise in denoisers.values()])
    first = np.concatenate([first, (first / first.min(axis=1, keepdims=True)).mean(axis=0, keepdims=True)])
    finalists = sorted({int(i) for row in first for i in row.argsort()[:FINALISTS]})
    last = np.stack(
        [
            errors(denoise, schedule, [candidates[i] for i in finalists], 2, FINAL_NOISES)
            for denoise in denoisers.values()
        ]
    )
    last = np.concatenate([last, (last / last.min(axis=1, keepdims=True)).mean(axis=0, keepdims=True)])
    chosen = {
        name: candidates[finalists[int(row.argmin())]] for name, row in zip((*denoisers, UNKNOWN), last, strict=True)
    }
    rows = []
    for name, denoise in denoisers.items():
        fresh = errors(denoise, schedule, [chosen[name], chosen[UNKNOWN], plain], 3, FINAL_NOISES)
        told = dict(zip(("error", "error_of_unknowns_settings", "error_of_uniform_ddim"), fresh.tolist(), strict=True))
        rows.append({"domain": name, "best": vars(chosen[name]), **told})
    return {name: dict(vars(settings)) for name, settings in chosen.items()}, rows


def smeared_denoiser(images: np.ndarray):
    """The exact denoiser of N(image, SMEAR^2) averaged over the images, as a function of x (B, H, W, C) and sigma."""
    shape = images.shape[1:]
    centres = mx.array((images.astype(np.float32) / 127.5 - 1).reshape(len(images), -1))
    norms = (centres**2).sum(axis=1)

    def denoise(x: mx.array, sigma: float) -> mx.array:
        flat, variance = x.reshape(len(x), -1), SMEAR**2 + sigma**2
        weights = mx.softmax((flat @ centres.T - norms / 2) / variance, axis=1)
        return ((SMEAR**2 * flat + sigma**2 * (weights @ centres)) / variance).reshape(-1, *shape)

    return denoise


def errors(denoise, schedule: NoiseSchedule, candidates: list[SamplerSettings], seed: int, count: int) -> np.ndarray:
    """Mean squared distance of each candidate's images from 200 steps of Heun."""
    noise = keyed_noise(seed, count, (16, 16, 3))
    truth = sample(denoise, noise, karras_grid(schedule, 200, t_first=999), "heun").images
    return np.array(
        [
            float(mx.mean((sample(denoise, noise, c.make_grid(schedule, CALLS), c.solver).images - truth) ** 2))
            for c in candidates
        ]
    )


if __name__ == "__main__":
    main()
