"""The branches of params.yaml's tree from which weights are made: the network, the teacher, the students."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mlx_tasks.config_base import Branch, Fraction, Positive

HOST = r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*(=[A-Za-z0-9][A-Za-z0-9.-]*)?$"
"""One of train.hosts: a name for ssh (perhaps USER@NAME), and after `=` the address that the ring takes if another."""


def ring_name(host: str) -> str:
    """The name or address under which the ring reaches one of train.hosts."""
    name, _, address = host.partition("=")
    return address or name.rpartition("@")[2]


def is_loopback(name: str) -> bool:
    """Whether a name or address means the machine that reads it."""
    return name == "localhost" or name.startswith("127.")


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
    hosts: tuple[Annotated[str, Field(pattern=HOST)], ...] = Field(
        default=(),
        description="Machines that share each batch, this one among them: names or IPv4 addresses, or NAME=ADDRESS"
        " where ssh and the ring take different ones; several times 127.0.0.1 for several processes here. Empty: this"
        " process alone. Keys that begin with `hosts` say where, not what (docs/distributed.md).",
    )
    hosts_folder: str = Field(
        default="adaptive-diffusion-optimizer",
        pattern=r"^[^-\s][^\x00\n]*$",
        description="The checkout on the other machines, absolute or from the home folder.",
    )
    hosts_python: str = Field(
        default=".venv/bin/python",
        pattern=r"^[^-\s][^\x00\n]*$",
        description="Their interpreter, absolute or from the checkout.",
    )
    hosts_port: int = Field(
        default=32323,
        ge=1024,
        le=65_000,
        description="First port of the ring; each machine takes the first of 64 from there that is free.",
    )
    hosts_timeout_s: float = Field(
        default=120.0,
        ge=5,
        le=3600,
        description="Longest silence of a machine, and longest wait for its share of a step (seconds).",
    )

    @model_validator(mode="after")
    def _hosts_differ(self) -> Train:
        if len(self.hosts) == 1:
            raise ValueError(
                f"train.hosts has one machine, {self.hosts[0]!r}: name two and more, or none for this process alone"
            )
        if len(self.hosts) > self.batch_size:
            raise ValueError(
                f"train.hosts has {len(self.hosts)} machines for a train.batch_size of {self.batch_size}: each needs "
                "an image, raise the batch size"
            )
        near = [host for host in self.hosts if is_loopback(ring_name(host))]
        if near and len(near) < len(self.hosts):
            raise ValueError(
                f"train.hosts has {near[0]!r}, which no other machine reaches: name this machine as the others see it"
            )
        twice = sorted({host for host in self.hosts if self.hosts.count(host) > 1} - set(near))
        if twice:
            raise ValueError(f"train.hosts has {twice[0]!r} more than once: only 127.0.0.1 may take several processes")
        return self

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
