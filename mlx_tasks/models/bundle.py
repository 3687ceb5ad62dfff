"""A bundle: a model, its noise schedule and how to sample it, in a folder that diffusers opens.

model_index.json            diffusers' list of components
unet/                       config.json and safetensors (see `folder`)
scheduler/                  scheduler_config.json: the diffusers scheduler that takes the same steps
sampler.json                solver, timesteps, guidance, classes: what diffusers has no place for
lineage.json                where it came from, if told
digests.json                SHA-256 of everything above but the lineage
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, write_json
from mlx_tasks.models.folder import (
    DIFFUSERS_VERSION,
    DIGESTS,
    check_digests,
    read_mapping,
    read_unet,
    write_digests,
    write_unet,
)
from mlx_tasks.models.levels import Level, check_timesteps, read_levels
from mlx_tasks.models.scheduler_config import scheduler_config
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import SOLVERS

MODEL_INDEX = "model_index.json"
SAMPLER = "sampler.json"
LINEAGE = "lineage.json"


@dataclass(frozen=True)
class Sampler:
    """How a bundle's model is sampled.

    Attributes:
        solver: a name of `samplers.solvers.SOLVERS`.
        timesteps: falling whole timesteps, one a step.
        guidance_scale: eps_u + scale * (eps_c - eps_u); 1.0 means none, or baked into the weights.
        nfe: network evaluations of one image: the solver's calls, twice if both branches run.
        resolution: image side (pixels).
        channels: colour channels.
        class_names: label i means class_names[i]; empty for a model without classes.
        null_label: the label that means "none", or None.
        learned: the steps of the solver `learned`, else None.  diffusers has no such solver: the timesteps are then the
            nearest whole ones, with which its DPM-Solver++(2M) draws images of the same noise, but not the same images.
        levels: other steps by quality level, for a server's callers to choose from.

    Raises: DataError naming the value and the rule it breaks.
    """

    solver: str
    timesteps: tuple[int, ...]
    guidance_scale: float
    nfe: int
    resolution: int
    channels: int
    class_names: tuple[str, ...] = ()
    null_label: int | None = None
    learned: LearnedSteps | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if (self.solver == "learned") != (self.learned is not None):
            raise DataError(f"sampler.learned goes with the solver 'learned' and with no other, got {self.solver!r}")
        if self.learned is not None and self.learned.num_steps != len(self.timesteps):
            raise DataError(f"sampler.learned has {self.learned.num_steps} steps, timesteps {len(self.timesteps)}")
        if self.learned is None and (self.solver not in SOLVERS or not SOLVERS[self.solver].diffusers):
            known = ", ".join(name for name, solver in SOLVERS.items() if solver.diffusers)
            raise DataError(f"sampler.solver must be one that diffusers has too ({known}), got {self.solver!r}")
        steps = self.timesteps
        check_timesteps(steps, "sampler.timesteps")
        evaluations = 1 if self.guidance_scale in (0.0, 1.0) else 2
        nfe = evaluations * SOLVERS[self.solver].calls(len(steps))
        if self.nfe != nfe:
            raise DataError(
                f"sampler.nfe must be {nfe} ({len(steps)} steps of {self.solver}, guidance {self.guidance_scale:g}), "
                f"got {self.nfe}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sampler:
        """The sampler of a sampler.json.  Raises: DataError for missing or unknown keys, and as the class does."""
        names = {one.name for one in fields(cls)}
        values = {"learned": None, "levels": {}, **values}  # older bundles have neither
        if set(values) != names:
            raise DataError(
                f"{SAMPLER} must hold exactly {', '.join(sorted(names))}; missing {sorted(names - set(values))}, "
                f"unknown {sorted(set(values) - names)}"
            )
        learned = None if values["learned"] is None else LearnedSteps.from_dict(values["learned"])
        return cls(**{**values, "learned": learned, "levels": read_levels(values["levels"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        plain |= {"timesteps": list(self.timesteps), "class_names": list(self.class_names)}
        plain |= {"levels": {name: level.to_dict() for name, level in self.levels.items()}}
        return plain | {"learned": self.learned.to_dict() if self.learned else None}


@dataclass(frozen=True)
class Bundle:
    """What `read_bundle` gives.

    Attributes:
        model: the network, evaluated.
        schedule: the noise schedule it was trained with.
        sampler: how to sample it.
        lineage: what lineage.json holds, or None.
        digest: SHA-256 over the digests of its files: equal for bundles that give equal images.
    """

    model: UNet2DModel
    schedule: NoiseSchedule
    sampler: Sampler
    lineage: dict[str, Any] | None = None
    digest: str = ""


def write_bundle(
    folder: Path, model: UNet2DModel, schedule: NoiseSchedule, sampler: Sampler, lineage: dict[str, Any] | None = None
) -> None:
    """Put a bundle in place of `folder`, whole or not at all.

    unet/config.json's sample_size becomes the sampler's resolution, because diffusers' pipelines draw noise of it.
    Raises: DataError where sampler, schedule and model do not fit each other; OSError, which leaves the old bundle.
    """
    config = replace(model.config, sample_size=sampler.resolution)
    _check_fit(config, schedule, sampler)
    with atomic_folder(folder) as fresh:
        write_unet(model, config, fresh / "unet")
        scheduler = {**scheduler_config(schedule, sampler), "_diffusers_version": DIFFUSERS_VERSION}
        write_json(fresh / "scheduler" / "scheduler_config.json", scheduler)
        write_json(fresh / MODEL_INDEX, _model_index(config, scheduler["_class_name"]))
        write_json(fresh / SAMPLER, sampler.to_dict())
        if lineage is not None:
            write_json(fresh / LINEAGE, lineage)
        write_digests(fresh, exclude=frozenset({LINEAGE}))


def read_bundle(folder: Path) -> Bundle:
    """The bundle of a folder, every file checked.

    Raises: DataError as `load_unet`, and where a file is missing or the parts do not fit each other.
    """
    if not (folder / DIGESTS).is_file():
        raise DataError(f"{folder} is no bundle: it has no {DIGESTS}; a bare diffusers folder is read by load_unet")
    check_digests(folder)
    model = read_unet(folder / "unet")
    schedule = NoiseSchedule.from_config(read_mapping(folder / "scheduler" / "scheduler_config.json"))
    sampler = Sampler.from_dict(read_mapping(folder / SAMPLER))
    _check_fit(model.config, schedule, sampler)
    lineage = read_mapping(folder / LINEAGE) if (folder / LINEAGE).is_file() else None
    return Bundle(model, schedule, sampler, lineage, bundle_digest(folder))


def bundle_digest(folder: Path) -> str:
    """SHA-256 (hex) over the digests of a bundle's files, the lineage left out."""
    digests = read_mapping(folder / DIGESTS)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _model_index(config: UNet2DConfig, scheduler_class: str) -> dict[str, Any]:
    """diffusers' index. It has one pipeline that draws our images: DDIM, without classes; else it lists the parts."""
    whole = scheduler_class == "DDIMScheduler" and config.num_class_embeds is None and config.class_embed_type is None
    return {
        "_class_name": "DDIMPipeline" if whole else "DiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler_class],
        "unet": ["diffusers", "UNet2DModel"],
    }


def _check_fit(config: UNet2DConfig, schedule: NoiseSchedule, sampler: Sampler) -> None:
    if sampler.resolution % config.stride:
        raise DataError(f"sampler.resolution must be a multiple of {config.stride}, got {sampler.resolution}")
    if not sampler.channels == config.in_channels == config.out_channels:
        raise DataError(
            f"sampler.channels must be the network's in and out channels {config.in_channels} and "
            f"{config.out_channels}, got {sampler.channels}"
        )
    for first in (sampler.timesteps[0], *(level.timesteps[0] for level in sampler.levels.values())):
        if first >= schedule.num_train_timesteps:
            raise DataError(f"sampler.timesteps must be below {schedule.num_train_timesteps}, got {first}")
    labels = config.num_class_embeds or 0
    if len(sampler.class_names) > labels or (sampler.null_label is not None and not 0 <= sampler.null_label < labels):
        raise DataError(
            f"the network has {labels} labels, too few for {len(sampler.class_names)} class names and null_label "
            f"{sampler.null_label}"
        )
    if sampler.guidance_scale != 1.0 and sampler.null_label is None:
        raise DataError(f"sampler.guidance_scale {sampler.guidance_scale} needs a null_label: set one, or use 1.0")
