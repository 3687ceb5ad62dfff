"""A bundle: a model, its noise schedule and how to sample it, in a folder that diffusers opens.

model_index.json            diffusers' list of components
unet/                       config.json and safetensors (see `folder`)
scheduler/                  scheduler_config.json: the diffusers scheduler that takes the same steps
sampler.json                solver, timesteps, guidance, classes: what diffusers has no place for
lineage.json                where it came from, if told
reference/, README.md       what `register` adds: the images it was registered with, and a card
digests.json                SHA-256 of everything above (see `digests`)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, write_json
from mlx_tasks.models.digests import DIGESTS, bundle_digest, check_digests, content_digest, write_digests
from mlx_tasks.models.folder import CONFIG, DIFFUSERS_VERSION, read_unet, write_unet
from mlx_tasks.models.json_file import read_mapping
from mlx_tasks.models.sampler import SAMPLER, Sampler
from mlx_tasks.models.scheduler_config import scheduler_config
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel

__all__ = [
    "LINEAGE",
    "SAMPLER",
    "Bundle",
    "Sampler",
    "bundle_digest",
    "check_digests",
    "content_digest",
    "read_bundle",
    "write_bundle",
]

MODEL_INDEX = "model_index.json"
LINEAGE = "lineage.json"


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
        write_digests(fresh)


def read_bundle(folder: Path) -> Bundle:
    """The bundle of a folder, every file checked.

    Raises: DataError as `load_unet`, and where a file is missing or the parts do not fit each other.
    """
    if not (folder / DIGESTS).is_file():
        lacks = f"it has no {DIGESTS}; a bare diffusers folder is read by load_unet"
        raise DataError(f"{folder} is no bundle: {lacks if folder.is_dir() else 'there is no such folder'}")
    check_digests(folder)
    scheduler = read_mapping(folder / "scheduler" / "scheduler_config.json", infinite=True)
    schedule = NoiseSchedule.from_config(scheduler)
    _check_index(read_mapping(folder / MODEL_INDEX), scheduler.get("_class_name"))
    sampler = Sampler.from_dict(read_mapping(folder / SAMPLER))
    _check_fit(UNet2DConfig.from_dict(read_mapping(folder / "unet" / CONFIG)), schedule, sampler)
    model = read_unet(folder / "unet")
    lineage = read_mapping(folder / LINEAGE) if (folder / LINEAGE).is_file() else None
    return Bundle(model, schedule, sampler, lineage, bundle_digest(folder))


def _model_index(config: UNet2DConfig, scheduler_class: str) -> dict[str, Any]:
    """diffusers' index. It has one pipeline that draws our images: DDIM, without classes; else it lists the parts."""
    whole = scheduler_class == "DDIMScheduler" and config.num_class_embeds is None and config.class_embed_type is None
    return {
        "_class_name": "DDIMPipeline" if whole else "DiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler_class],
        "unet": ["diffusers", "UNet2DModel"],
    }


def _check_index(index: dict[str, Any], scheduler_class: Any) -> None:
    """Raises: DataError where diffusers' index names other parts than are there."""
    for part, expected in (("unet", "UNet2DModel"), ("scheduler", scheduler_class)):
        if index.get(part) != ["diffusers", expected]:
            raise DataError(f"{MODEL_INDEX}'s {part} must be {['diffusers', expected]!r}, got {index.get(part)!r:.80}")


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
    empty, names = sampler.null_label, sampler.class_names
    if empty is not None and empty < len(names):
        raise DataError(f"sampler.null_label must be no class' label, {empty} is that of {names[empty]!r:.80}")
    if sampler.guidance_scale != 1.0 and sampler.null_label is None:
        raise DataError(f"sampler.guidance_scale {sampler.guidance_scale} needs a null_label: set one, or use 1.0")
