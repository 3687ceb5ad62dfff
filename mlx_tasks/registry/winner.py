"""The winner that evaluate chose, and the bundle made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError
from mlx_tasks.registry.gate import Score

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle


@dataclass(frozen=True)
class Winner:
    """One candidate of scores.json.

    Attributes:
        name: of the candidate.
        row: its row of scores.json.
        scores: metric -> score.
        references: reference set -> its metrics.
        setup: what the scores were measured with.
        sanity: which metrics passed the sanity ladder; empty for scores from before there was one.
    """

    name: str
    row: dict[str, Any]
    scores: dict[str, Score]
    references: dict[str, dict[str, Any]]
    setup: dict[str, Any]
    sanity: dict[str, dict[str, Any]]

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for two Frechet distances to compare."""
        setup = self.setup
        keys = ("dataset", "samples", "resolution", "channels", "classes", "seed", "noise_seed", "feature_space")
        return {key: setup[key] for key in keys}


def read_winner(scores: dict[str, Any]) -> Winner:
    """The winner of scores.json.  Raises: DataError for another shape."""
    try:
        rows = {row["candidate"]: row for row in scores["rows"]}
        row = rows[scores["winner"]["candidate"]]
        return Winner(
            row["candidate"],
            row,
            {name: Score.of(value) for name, value in row["metrics"].items()},
            {
                name.removeprefix("reference-"): other["metrics"]
                for name, other in rows.items()
                if other["kind"] == "reference"
            },
            scores["setup"],
            scores.get("sanity") or {},
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"scores.json is not the evaluate stage's ({error!r}): run `mlx-tasks evaluate`") from error


def winning_bundle(root: Path, winner: Winner) -> Bundle:
    """The winner's bundle with the solver, grid and guidance that won.

    Raises: DataError where the bundle is not the one that was scored.
    """
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.samplers.learned import LearnedSteps

    row = winner.row
    bundle = read_bundle(root / row["bundle"])
    if bundle.digest != row["bundle_digest"]:
        raise DataError(f"{row['bundle']} changed since it was scored: run `mlx-tasks evaluate` again")
    sampler = replace(
        bundle.sampler,
        solver=row["solver"],
        timesteps=tuple(row["timesteps"]),
        guidance_scale=row["guidance_scale"],
        nfe=row["nfe"],
        learned=LearnedSteps.from_dict(row["learned"]) if row.get("learned") else None,
    )
    return replace(bundle, sampler=sampler)
