"""The parts that can be switched off: each a few params, or a choice at sampling that needs no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: as it is asked for.
        summary: what it is, for people.
        target: the stage up to which the chain runs: train, distill or tune.
        overrides: dotted keys that switch it off; empty where sampling alone decides.
        subject: whose images are scored: the teacher, the last accepted student, or the searched student.
    """

    name: str
    summary: str
    target: Literal["train", "distill", "tune"]
    overrides: dict[str, Any]
    subject: Literal["teacher", "student", "searched"]


PARTS = {
    part.name: part
    for part in (
        Part("ema", "averaged weights", "train", {"train.ema_decay": 0.0}, "teacher"),
        Part("min_snr", "min-SNR loss weight", "train", {"train.min_snr_gamma": None}, "teacher"),
        Part("guidance", "classifier-free guidance", "train", {"train.guidance_scale": 1.0}, "teacher"),
        Part(
            "label_dropout",
            "label dropout, and the guidance that needs it",
            "train",
            {"train.label_dropout": 0.0, "train.guidance_scale": 1.0},
            "teacher",
        ),
        Part("ladder", "training at small resolutions first", "train", {"train.resolutions": "last"}, "teacher"),
        Part("distillation", "the student, against the teacher at its evaluations", "distill", {}, "student"),
        Part("learned_grid", "the grid that the tune stage kept, against an evenly spaced one", "tune", {}, "searched"),
    )
}


def find_parts(names: list[str]) -> list[Part]:
    """The named parts, all of them for none.  Raises: DataError listing the names."""
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise DataError(f"no part named {unknown[0]!r}; there are: {', '.join(PARTS)}")
    return [PARTS[name] for name in names or PARTS]


def switched_off(part: Part, config: Config) -> dict[str, Any]:
    """The part's overrides for a tree.  Raises: DataError where it is off already, or cannot be switched off."""
    if part.name == "ladder":
        if len(config.train.resolutions) < 2:
            raise DataError("the ladder has one resolution: there is nothing to switch off")
        return {"train.resolutions": [config.train.resolutions[-1]]}
    tree = config.dump()
    off = [key for key, value in part.overrides.items() if _value(tree, key) == value]
    if part.overrides and len(off) == len(part.overrides):
        raise DataError(f"{part.name} is off in these params already ({', '.join(off)})")
    return part.overrides


def _value(tree: dict[str, Any], dotted: str) -> Any:
    found: Any = tree
    for key in dotted.split("."):
        found = found[key]
    return found
