"""How often does the monitor alert when nothing is wrong, and how often when something is?

    python benchmarks/monitor_power.py work/registered/bundle

False alerts: windows of fresh images of the registered bundle, against its own reference, and against references drawn
anew for each window (a test's level is a promise over both). Power: windows of degraded models by number of images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import RESULTS, hardware, save

hardware.prepare()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten, tree_unflatten  # noqa: E402

from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.monitoring.monitor import Rules, Seen, compare  # noqa: E402
from mlx_tasks.registry.draw import draw  # noqa: E402
from mlx_tasks.registry.reference import Reference, numbers_of, read_reference, redraw  # noqa: E402

QUESTION = "How often does the monitor alert without drift, and how often with it?"
RULES = Rules(level=0.01, permutations=999)
FIRST_SEED = 10_000_000


class Source:
    """Fresh images of a bundle, degraded or not, as a window shows them."""

    def __init__(self, bundle: Bundle, reference: Reference) -> None:
        self._bundle, self._reference = bundle, reference
        self._names = bundle.sampler.class_names
        self._next = FIRST_SEED

    def images(self, count: int, bundle: Bundle, wrong: int | None = None) -> tuple[np.ndarray, list[int]]:
        """(images, the classes asked for); `wrong`: a class that is drawn as the one after it."""
        asked = [i % len(self._names) if self._names else -1 for i in range(count)]
        labels = [(k + 1) % len(self._names) if k == wrong else k for k in asked]
        seeds = list(range(self._next, self._next + count))
        self._next += count
        return draw(bundle, labels, seeds), asked

    def seen(self, images: np.ndarray, asked: list[int]) -> Seen:
        """As the window keeps them."""
        classes = tuple(self._names[k] if k >= 0 else "" for k in asked)
        return Seen(self._reference.features(images), classes, self._numbers(images, asked))

    def reference(self) -> Reference:
        """Another reference of the same bundle, with images of its own."""
        images, asked = self.images(len(self._reference.labels), self._bundle)
        return replace(
            self._reference,
            generated=self._reference.features(images),
            labels=np.array(asked, np.int32),
            scalars=self._numbers(images, asked),
        )

    def _numbers(self, images: np.ndarray, asked: list[int]) -> dict[str, np.ndarray]:
        return numbers_of(images, np.array(asked), self._reference.captions)


def noisy(bundle: Bundle, share: float) -> Bundle:
    """Every weight with noise of `share` of its array's standard deviation."""
    import copy

    model = copy.deepcopy(bundle.model)
    flat: Any = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(1), len(flat))
    changed = [
        (name, value + share * mx.std(value) * mx.random.normal(value.shape, key=key))
        for (name, value), key in zip(flat, keys, strict=True)
    ]
    model.update(tree_unflatten(changed))
    return replace(bundle, model=model)


def truncated(bundle: Bundle) -> Bundle:
    """The last step of the schedule left out: its noise stays in the image."""
    sampler = bundle.sampler
    branches = sampler.nfe // max(1, len(sampler.timesteps))
    steps = sampler.timesteps[:-1] if len(sampler.timesteps) > 1 else sampler.timesteps
    solver = sampler.solver if sampler.solver != "learned" else "dpmpp_2m"
    kept = replace(sampler, solver=solver, learned=None, timesteps=steps, nfe=max(1, branches) * len(steps))
    return replace(bundle, sampler=kept)


def alerts_of(
    source: Source, images: np.ndarray, asked: list[int], reference: Reference, names: list[str], seed: int
) -> list[str]:
    """Metrics of the alerts of one window."""
    found, _ = compare(source.seen(images, asked), reference, names, replace(RULES, seed=seed))
    return [one.metric for one in found]


def main() -> None:
    """Simulate, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a registered bundle, with its reference")
    parser.add_argument("--windows", type=int, default=300, help="without drift, of each kind of reference")
    parser.add_argument("--trials", type=int, default=20, help="with drift, of each kind and count")
    parser.add_argument("--counts", type=int, nargs="+", default=[60, 120, 240])
    given = parser.parse_args()
    bundle = read_bundle(given.bundle)
    reference, names = redraw(read_reference(given.bundle), bundle), list(bundle.sampler.class_names)
    source, rows = Source(bundle, reference), []
    for kind in ("registered", "drawn anew"):
        raised = []
        for window in range(given.windows):
            images, asked = source.images(given.counts[0], bundle)
            against = reference if kind == "registered" else source.reference()
            raised.append(bool(alerts_of(source, images, asked, against, names, window)))
        share, error = float(np.mean(raised)), float(np.sqrt(RULES.level * (1 - RULES.level) / len(raised)))
        rows.append(
            {
                "degradation": "none",
                "reference": kind,
                "count": given.counts[0],
                "alerts": share,
                "windows": len(raised),
            }
        )
        print(
            f"no drift, reference {kind}: {share:.3f} of {len(raised)} windows, level {RULES.level} (+- {error:.3f})",
            flush=True,
        )
    degradations: dict[str, tuple[Bundle, int | None, Callable[[np.ndarray], np.ndarray]]] = {
        "last step left out": (truncated(bundle), None, lambda x: x),
        "weights + 2 % noise": (noisy(bundle, 0.02), None, lambda x: x),
        "weights + 5 % noise": (noisy(bundle, 0.05), None, lambda x: x),
        "weights + 10 % noise": (noisy(bundle, 0.1), None, lambda x: x),
        "weights + 20 % noise": (noisy(bundle, 0.2), None, lambda x: x),
        "one class drawn as another": (bundle, 0, lambda x: x),
        "one image for every seed": (bundle, None, lambda x: np.repeat(x[:1], len(x), axis=0)),
        "4 grey levels brighter": (bundle, None, lambda x: np.clip(x.astype(int) + 4, 0, 255).astype(np.uint8)),
        "16 grey levels brighter": (bundle, None, lambda x: np.clip(x.astype(int) + 16, 0, 255).astype(np.uint8)),
    }
    print(
        f"{'degradation':<28}" + "".join(f"{count:>7}" for count in given.counts) + "  images; what tells it most often"
    )
    for name, (changed, wrong, after) in degradations.items():
        line, told = f"{name:<28}", []
        for count in given.counts:
            found = []
            for trial in range(given.trials):
                images, asked = source.images(count, changed, wrong)
                found.append(alerts_of(source, after(images), asked, reference, names, trial))
            told += [metric for metrics in found for metric in metrics]
            rows.append(
                {
                    "degradation": name,
                    "count": count,
                    "alerts": float(np.mean([bool(one) for one in found])),
                    "windows": given.trials,
                }
            )
            line += f"{rows[-1]['alerts']:>7.2f}"
        most = sorted(set(told), key=lambda metric: -told.count(metric))[:3]
        rows[-1]["told_by"] = most
        print(f"{line}  {', '.join(most)}", flush=True)
    config = {"level": RULES.level, "permutations": RULES.permutations, "reference_images": len(reference.labels)}
    config |= {"held_out": len(reference.held_out), "nfe": bundle.sampler.nfe, "bundle": bundle.digest}
    save("monitor_power", question=QUESTION, config=config, rows=rows)
    print(f"saved {RESULTS / 'monitor_power.json'}")


if __name__ == "__main__":
    main()
