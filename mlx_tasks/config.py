"""params.yaml as one typed tree: every stage's branch, with bounds, units and a description on each field.

It is read and written by `mlx_tasks/params.py`. Kernels never see it: a stage hands them plain numbers.
This module imports neither MLX nor Airflow and is cheap enough for a DAG file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

BUILTIN_DIGITS = "include/datasets/digits.yaml"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Branch(BaseModel):
    """A frozen node of the tree; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Branch):
    """What is read, and what an image must be to be accepted."""

    path: str = Field(
        default=BUILTIN_DIGITS,
        min_length=1,
        description="A dataset card of a built-in set, or a folder of images in the Hugging Face imagefolder convention"
        " (labels from the folder names or metadata.jsonl, captions from metadata.jsonl).",
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
    duplicate_distance: int = Field(
        default=12,
        ge=0,
        le=32,
        description="Perceptual-hash bits (of 256) within which two images count as near duplicates.",
    )
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5, description="Share of the validation split.")
    test_fraction: float = Field(default=0.25, gt=0, lt=0.5, description="Share of the test split.")


class Model(Branch):
    """The teacher's U-Net, as diffusers' UNet2DModel names its parts."""

    block_out_channels: tuple[Positive, ...] = Field(
        default=(32, 64), min_length=1, description="Channels of each level."
    )
    layers_per_block: int = Field(default=1, ge=1, le=4, description="ResNet blocks of each level.")
    attention_levels: tuple[bool, ...] = Field(default=(False, True), description="Which levels have self-attention.")
    attention_head_dim: int = Field(default=16, ge=4, description="Channels of one attention head.")
    act_fn: Literal["auto", "silu", "relu", "gelu", "mish"] = Field(
        default="auto", description="Activation; auto: what is fast on this device (relu on a CPU, silu elsewhere)."
    )
    norm_num_groups: int = Field(default=8, ge=1, description="Groups of each GroupNorm.")

    @model_validator(mode="after")
    def _levels_agree(self) -> Model:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"model.attention_levels has {len(self.attention_levels)} entries and model.block_out_channels "
                f"{len(self.block_out_channels)}: give one entry a level"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"model.block_out_channels has {channels}, not divisible by model.norm_num_groups "
                    f"{self.norm_num_groups}: change one of them"
                )
        return self

    @property
    def stride(self) -> int:
        """Image side over the side of the coarsest level."""
        return 2 ** (len(self.block_out_channels) - 1)


class Train(Branch):
    """The teacher: v-prediction over a ladder of resolutions, EMA, label dropout for classifier-free guidance."""

    resolutions: tuple[Annotated[int, Field(ge=4, le=1024)], ...] = Field(
        default=(8, 16), min_length=1, description="Image sides of the ladder, rising (pixels)."
    )
    steps: int = Field(
        default=1200, ge=1, description="Optimiser steps over the whole ladder; the last rung gets half."
    )
    batch_size: int = Field(default=64, ge=1, description="Images of one optimiser step.")
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1.0, description="Peak of the learning rate (cosine to a tenth)."
    )
    warmup_steps: int = Field(default=50, ge=0, description="Steps of linear warm-up, at each rung.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient norm above which gradients are scaled down.")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="Highest decay of the averaged weights.")
    label_dropout: Fraction = Field(default=0.1, description="Chance that a label is replaced by the empty one.")
    min_snr_gamma: float | None = Field(
        default=5.0, gt=0, description="Cap of the loss weight (Hang et al. 2023); null weighs all noise levels alike."
    )
    noise_schedule: Literal["cosine", "linear", "scaled_linear", "sigmoid", "learned"] = Field(
        default="cosine",
        description="How noise rises over training time; learned: each level as often as its loss varies, settled in"
        " the first half of the steps (docs/training.md).",
    )
    zero_terminal_snr: bool = Field(
        default=False, description="Make the last timestep pure noise (Lin et al. 2024); not with a learned schedule."
    )
    guidance_scale: float = Field(
        default=1.5, ge=0, description="Classifier-free guidance: eps_u + scale * (eps_c - eps_u)."
    )
    checkpoint_every: int = Field(default=100, ge=1, description="Optimiser steps between two checkpoints.")
    sample_every: int = Field(default=200, ge=1, description="Optimiser steps between two sample grids.")

    @model_validator(mode="after")
    def _rising(self) -> Train:
        if list(self.resolutions) != sorted(set(self.resolutions)):
            raise ValueError(f"train.resolutions must rise strictly, got {list(self.resolutions)}: sort them")
        if self.steps < len(self.resolutions):
            raise ValueError(f"train.steps is {self.steps}, fewer than the {len(self.resolutions)} rungs: raise it")
        if self.zero_terminal_snr and self.noise_schedule == "learned":
            raise ValueError("train.zero_terminal_snr is for a named train.noise_schedule, not for a learned one")
        return self

    @property
    def ladder(self) -> tuple[tuple[int, int], ...]:
        """(resolution, steps) of each rung: the last gets half of the steps, the others share the rest."""
        count = len(self.resolutions)
        if count == 1:
            return ((self.resolutions[0], self.steps),)
        early = max(1, self.steps // 2 // (count - 1))
        return (*((r, early) for r in self.resolutions[:-1]), (self.resolutions[-1], self.steps - early * (count - 1)))


class Distill(Branch):
    """Progressive distillation (Salimans & Ho 2022): each student takes half the steps of the one before."""

    start_steps: int = Field(
        default=16, ge=2, description="Steps of the first student; a power of two times target_steps."
    )
    target_steps: int = Field(default=1, ge=1, description="Where halving ends if no gate has ended it before.")
    updates: int = Field(default=300, ge=1, description="Optimiser steps of each student.")
    batch_size: int = Field(default=64, ge=1, description="Images of one optimiser step.")
    learning_rate: float = Field(default=3e-4, gt=0, le=1.0, description="Peak of the learning rate (linear to zero).")
    max_quality_loss: float = Field(
        default=0.5,
        ge=0,
        description="Largest rise of the Frechet distance over the teacher's, as a fraction of the teacher's.",
    )
    gate_samples: int = Field(default=512, ge=16, description="Images a student is judged by.")
    checkpoint_every: int = Field(default=100, ge=1, description="Optimiser steps between two checkpoints.")

    @model_validator(mode="after")
    def _halves(self) -> Distill:
        ratio, rest = divmod(self.start_steps, self.target_steps)
        if rest or ratio < 1 or ratio & (ratio - 1):
            raise ValueError(
                f"distill.start_steps {self.start_steps} must be target_steps {self.target_steps} times a power of two"
            )
        return self

    @property
    def step_counts(self) -> tuple[int, ...]:
        """Steps of each student in the order they are made, for example (16, 8, 4, 2, 1)."""
        counts = [self.start_steps]
        while counts[-1] > self.target_steps:
            counts.append(counts[-1] // 2)
        return tuple(counts)


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

    @model_validator(mode="after")
    def _numbered(self) -> Search:
        if list(self.slots) != list(range(len(self.slots))):
            raise ValueError(f"search.slots must be 0, 1, 2, ... without gaps, got {list(self.slots)}")
        return self


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


class Evaluate(Branch):
    """Scores of every candidate, by network evaluations, with intervals."""

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


class Limit(Branch):
    """One rule of the gate."""

    metric: str = Field(min_length=1, description="A metric of scores.json.")
    direction: Literal["below", "above"] = Field(description="Which side of the limit is good.")
    limit: float = Field(description="The limit, in the metric's own unit.")
    optional: bool = Field(
        default=False, description="Leave the rule out where the metric failed the sanity ladder, instead of refusing."
    )


class Gate(Branch):
    """What a candidate must reach to be promoted."""

    limits: tuple[Limit, ...] = Field(
        default=(
            Limit(metric="frechet_distance", direction="below", limit=0.15),
            Limit(metric="recall", direction="above", limit=0.3),
            Limit(metric="latency_ms", direction="below", limit=2000.0),
        ),
        description="Rules on the winner's scores, each of which must hold.",
    )
    not_worse: tuple[str, ...] = Field(
        default=("frechet_distance",),
        description="Metrics in which the winner must not be worse than the champion beyond the noise.",
    )
    promote: bool = Field(default=True, description="Whether a winner that passes becomes champion.")


class Register(Branch):
    """Where the winner goes."""

    model_name: str = Field(default="digits-sampler", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


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
