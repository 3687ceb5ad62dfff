"""Which of Optuna's samplers finds more of the front in two generations of six?

    python benchmarks/search_samplers.py

Error, latency and memory are smooth functions of the architecture, so the whole front is known. The figure is the
share of the whole front's dominated volume (in logarithms) that twelve tried architectures dominate, by seed.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume
from record import save

from mlx_tasks.search import study as studies
from mlx_tasks.search.space import Architecture, Space

SEEDS, GENERATIONS, SLOTS = 24, 2, 6
SPACE = Space((16, 24, 32, 48, 64), (1, 2), (1, 2, 3), ("none", "middle", "coarse"), (8, 16), ("relu", "silu"), 8)


def costs(a: Architecture) -> dict[str, float]:
    """What an architecture costs: invented, smooth, and with a front to find."""
    size = a.width * a.multiplier * a.depth
    attention = {"none": 0.0, "middle": 0.1, "coarse": 0.2}[a.attention]
    error = size**-0.5 * (1 - attention / 2) * (1.05 if a.act_fn == "relu" else 1.0)
    latency = size * (1.0 if a.act_fn == "relu" else 2.5) * (1 + 3 * attention)
    return dict(zip(studies.OBJECTIVES, (error, latency, a.width * (1 + a.multiplier)), strict=True))


ALL = np.log([list(costs(a).values()) for a in SPACE])
WORST = ALL.max(axis=0) + 0.01
WHOLE = compute_hypervolume(ALL, WORST)


def share(seed: int, sampler: Callable[[int, int], optuna.samplers.BaseSampler]) -> float:
    """The share of the whole volume that one study's tries dominate."""
    study = optuna.create_study(directions=["minimize"] * 3)
    tried = []
    for generation in range(GENERATIONS):
        study.sampler = sampler(seed, generation)
        proposals = studies.ask(study, SPACE, range(SLOTS), seed, generation)
        results = [
            {
                "generation": generation,
                "slot": proposal.slot,
                "number": proposal.number,
                "architecture": proposal.architecture.as_dict(),
                "state": "COMPLETE",
                "reason": "",
                "values": costs(proposal.architecture),
            }
            for proposal in proposals
        ]
        studies.tell(study, SPACE, results)
        tried += [list(result["values"].values()) for result in results]
    return float(compute_hypervolume(np.log(tried), WORST) / WHOLE)


def main() -> None:
    """Every sampler over the seeds; tell, save."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {
        "TPE": studies.sampler_of,
        "random": lambda seed, generation: optuna.samplers.RandomSampler(seed=100 * seed + generation),
        "NSGA-II": lambda seed, generation: optuna.samplers.NSGAIISampler(
            population_size=SLOTS, seed=100 * seed + generation
        ),
    }
    rows = []
    for name, sampler in samplers.items():
        shares = [share(seed, sampler) for seed in range(SEEDS)]
        rows.append({"sampler": name, "share": mean(shares), "deviation": stdev(shares), "seeds": SEEDS})
        print(rows[-1])
    config = {"architectures": len(ALL), "generations": GENERATIONS, "slots": SLOTS}
    save("search_samplers", question="Which sampler finds more of the front?", config=config, rows=rows)


if __name__ == "__main__":
    main()
