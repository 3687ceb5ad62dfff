"""params.yaml as one typed tree: every stage's branch, with bounds, units and a description on each field.

`mlx_tasks/params.py` reads and writes it; the branches that weights are made from stand in config_training.py. Kernels
never see it: a stage hands them plain numbers.
This module imports neither MLX nor Airflow and is cheap enough for a DAG file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlx_tasks.config_base import Branch, Fraction, Positive, numbered
from mlx_tasks.config_training import Distill, Model, Train

BUILTIN_DIGITS = "include/datasets/digits.yaml"
AUTO_NAME = "auto"
"""What `register.model_name` says to be named after the dataset."""


class Data(Branch):
    """What is read, and what an image must be to be accepted."""

    path: str = Field(
        default=BUILTIN_DIGITS,
        min_length=1,
        description="A dataset card of a built-in set, or a folder of images in the Hugging Face imagefolder convention"
        " (labels from folder names or metadata.jsonl; captions from metadata.jsonl or .txt files beside the images).",
    )
    channels: Literal["auto", "grey", "rgb"] = Field(
        default="auto", description="Colour channels; auto: grey if every image is."
    )
    min_images: int = Field(default=64, ge=2, description="Fewest accepted images (images).")
    min_side: int = Field(default=8, ge=1, description="Shortest side accepted (pixels).")
    max_pixels: int = Field(
        default=50_000_000, ge=64, description="Largest image decoded (pixels); above it is a bomb."
    )
    max_aspect_ratio: float = Field(default=3.0, ge=1.0, description="Longest side over shortest.")
    max_quarantined: Fraction = Field(
        default=0.05, description="Fraction of images that may be refused before the run fails."
    )
    max_uncaptioned: Fraction = Field(
        default=0.2,
        description="Fraction of captions that may be empty on purpose: a metadata row or a caption file without text.",
    )
    duplicate_distance: int = Field(
        default=12,
        ge=0,
        le=32,
        description="Perceptual-hash bits (of 256) within which two images count as near duplicates.",
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="Share of the validation split.")
    test_fraction: float = Field(default=0.25, gt=0, lt=0.5, description="Share of the test split.")


class Search(Branch):
    """Architecture search: quality of a short distillation against measured latency and peak memory."""

    slots: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="Trials of one generation, numbered from 0."
    )
    widths: tuple[Positive, ...] = Field(default=(16, 24, 32), min_length=1, description="Channels of the first level.")
    multipliers: tuple[Positive, ...] = Field(default=(1, 2), min_length=1, description="Second level over the first.")
    depths: tuple[Positive, ...] = Field(default=(1, 2), min_length=1, description="ResNet blocks of each level.")
    attention: tuple[Literal["none", "middle", "coarse", "all"], ...] = Field(
        default=("none", "middle", "coarse"),
        min_length=1,
        description="Where self-attention may sit: nowhere, the middle, there and in the second level, or everywhere.",
    )
    head_dims: tuple[Positive, ...] = Field(
        default=(8, 16), min_length=1, description="Channels of one attention head."
    )
    act_fns: tuple[Literal["silu", "relu", "gelu"], ...] = Field(default=("silu", "relu"), min_length=1)
    trial_updates: int = Field(default=100, ge=1, description="Optimiser steps of one trial.")
    final_updates: int = Field(default=400, ge=1, description="Optimiser steps of the chosen student.")
    batch_size: int = Field(default=64, ge=1, description="Images of one optimiser step.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1.0)
    latency_batch: int = Field(default=16, ge=1, description="Images of the batch whose latency is measured.")
    max_quality_loss: float = Field(
        default=0.5,
        ge=0,
        description="The chosen student is the fastest on the front within this of the best error, as a fraction.",
    )
    checkpoint_every: int = Field(default=100, ge=1, description="Optimiser steps between two checkpoints.")

    @field_validator("slots")
    @classmethod
    def _slots(cls, slots: tuple[int, ...]) -> tuple[int, ...]:
        return numbered("search.slots", slots)


class Tune(Branch):
    """The sampling steps: grids found by plain search, and every other method that is asked for, against each other."""

    methods: tuple[
        Literal["remembered", "shortest_path", "cma_es", "ppo", "gradient_levels", "gradient", "least_squares"], ...
    ] = Field(
        default=("remembered", "shortest_path", "cma_es", "ppo", "least_squares"),
        description="Methods beside the plain searches, which the others start from (docs/schedules.md); remembered:"
        " the grid of earlier runs on the nearest images.",
    )

    nfe_budgets: tuple[Annotated[int, Field(ge=2, le=100)], ...] = Field(
        default=(4, 6, 8), min_length=1, description="Network evaluations a sample may cost."
    )
    ppo_steps: int = Field(default=2048, ge=16, description="Environment steps PPO learns from, over all budgets.")
    ppo_patience: int | None = Field(
        default=8,
        ge=1,
        description="Iterations of PPO without a gain after which it ends; null: it takes all its steps.",
    )
    num_envs: int = Field(default=4, ge=1, description="Environments side by side.")
    batch_size: int = Field(default=16, ge=1, description="Noises in one episode.")
    reference_steps: int = Field(default=64, ge=8, description="Steps of the many-step result that is the truth.")
    gradient_iterations: int = Field(
        default=200, ge=1, description="Steps of gradient descent a budget, a batch each; CMA-ES may spend as much."
    )
    search_evaluations: int = Field(
        default=48, ge=4, description="Grids the plain search over end points may try, a budget."
    )
    speed_weight: float = Field(
        default=0.05, ge=0, description="Reward lost for each network evaluation spent, as a fraction."
    )
    test_noises: int = Field(default=128, ge=8, description="Fresh noises every method is compared on.")
    max_minutes: float | None = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Time that all of it may take (minutes), by what an evaluation costs here: methods that would not"
        " fit are left out, and told; null: no limit.",
    )


class Evaluate(Branch):
    """Scores of every candidate, by network evaluations, with intervals."""

    slots: tuple[int, ...] = Field(
        default=(0, 1), min_length=1, description="Tasks that candidates and reference sets are shared among, from 0."
    )
    samples: int = Field(default=400, ge=32, description="Images of each candidate; held-out images are matched to it.")
    nfe: tuple[Positive, ...] = Field(default=(2, 4, 8, 16), min_length=1, description="Network evaluations scored.")
    bootstrap: int = Field(default=100, ge=10, description="Resamples behind each interval.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Level of each interval.")
    seeds: int = Field(
        default=1, ge=1, le=20, description="Noise seeds each candidate is drawn from; above 1 the spread is given too."
    )
    feature_steps: int = Field(default=400, ge=1, description="Optimiser steps of the built-in feature network.")
    extractors: tuple[str, ...] = Field(
        default=(), description="Published extractors to score with as well (metrics/extractors/registry.py)."
    )
    weights: str | None = Field(
        default=None, description="Folder of their weights, a subfolder each; by default $MLX_TASKS_WEIGHTS."
    )
    image_text_steps: int = Field(default=400, ge=1, description="Optimiser steps of the small image-text model.")
    latency_batch: int = Field(default=16, ge=1, description="Images of the batch whose latency is measured.")
    max_minutes: float | None = Field(
        default=15.0,
        gt=0,
        allow_inf_nan=False,
        description="Time that a slot may score (minutes): candidates that would not fit are left out, and told; null:"
        " no limit.",
    )

    @field_validator("slots")
    @classmethod
    def _slots(cls, slots: tuple[int, ...]) -> tuple[int, ...]:
        return numbered("evaluate.slots", slots)


class Limit(Branch):
    """One rule of the gate."""

    metric: str = Field(min_length=1, description="A metric of scores.json.")
    direction: Literal["below", "above"] = Field(description="Which side of the limit is good.")
    limit: float = Field(
        allow_inf_nan=False,
        description="The limit, in the metric's own unit; with `of`, a multiple of that set's score.",
    )
    of: Literal["real", "held-out", "class-missing", "noisy", "gaussian", "blurred", "noise"] | None = Field(
        default=None, description="A reference set of scores.json, scored on the same dataset; null: the limit stands."
    )
    optional: bool = Field(
        default=False, description="Leave the rule out where the metric failed the sanity ladder, instead of refusing."
    )


class Gate(Branch):
    """What a candidate must reach to be promoted."""

    limits: tuple[Limit, ...] = Field(
        default=(
            Limit(metric="frechet_distance", direction="below", limit=1.0, of="gaussian"),
            Limit(metric="recall", direction="above", limit=0.35, of="real"),
        ),
        description="Rules on the winner's scores, each of which must hold; by default by the dataset's own ruler.",
    )
    not_worse: tuple[str, ...] = Field(
        default=("frechet_distance",),
        description="Metrics in which the winner must not be worse than the champion beyond the noise.",
    )
    promote: bool = Field(default=True, description="Whether a winner that passes becomes champion.")


class Register(Branch):
    """Where the winner goes."""

    model_name: str = Field(
        default=AUTO_NAME,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="The registered model, which holds versions of one data set; auto: the dataset's name, -sampler.",
    )


SEED_STRIDE = 7919
"""Between the seeds of a stage's repetitions."""


class Redo(Branch):
    """How often each part of the chain was begun again with other random numbers, all before it being kept.

    A run that an alert starts at a stage raises that stage's number and those of the stages after it.
    """

    train: int = Field(default=0, ge=0, lt=10_000)
    distill: int = Field(default=0, ge=0, lt=10_000)
    search: int = Field(default=0, ge=0, lt=10_000)
    tune: int = Field(default=0, ge=0, lt=10_000)

    def again_from(self, stage: str) -> Redo:
        """With the numbers from a stage on raised by one."""
        names = list(type(self).model_fields)
        later = names[names.index(stage) :]
        return self.model_copy(update={name: getattr(self, name) + 1 for name in later})


class Config(Branch):
    """The whole tree."""

    seed: int = Field(default=0, ge=0, lt=2**31, description="The seed every stage's randomness derives from.")
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    distill: Distill = Distill()
    search: Search = Search()
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    register_: Register = Field(default=Register(), alias="register")
    redo: Redo = Redo()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _strides(self) -> Config:
        for resolution in self.train.resolutions:
            if resolution % self.model.stride:
                raise ValueError(
                    f"train.resolutions has {resolution}, not divisible by the U-Net's stride {self.model.stride} "
                    f"({len(self.model.block_out_channels)} levels): use a multiple of {self.model.stride}"
                )
        return self

    @property
    def resolution(self) -> int:
        """Image side of the ladder's last rung: what everything after the teacher works at (pixels)."""
        return self.train.resolutions[-1]

    def for_stage(self, stage: str) -> Config:
        """The tree with the seed that a stage shall take: another one each time that it is begun again."""
        again = self.redo.model_dump().get(stage.partition("_")[0], 0)
        return self.model_copy(update={"seed": (self.seed + SEED_STRIDE * again) % 2**31}) if again else self

    def dump(self) -> dict[str, Any]:
        """The tree as plain JSON types, in params.yaml's own names."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved tree, 16 hex digits."""
        return hashlib.sha256(json.dumps(self.dump(), sort_keys=True).encode()).hexdigest()[:16]
