"""The architectures that are searched: what may vary, what cannot be built, and how Optuna is asked for one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlx_tasks.errors import DataError

if TYPE_CHECKING:
    import optuna

    from mlx_tasks.config import Config
    from mlx_tasks.models.unet2d import UNet2DConfig

ActFn = Literal["silu", "relu", "gelu"]

ATTENTION = ("none", "middle", "coarse", "all")
"""Where self-attention sits: nowhere, in the middle block, there and in the coarse level, there and in both levels."""


@dataclass(frozen=True)
class Architecture:
    """One U-Net of two levels.

    Attributes:
        width: channels of the first level.
        multiplier: channels of the second level over the first's.
        depth: ResNet blocks of each level (diffusers' layers_per_block).
        attention: one of ATTENTION.
        head_dim: channels of an attention head; None where there is no attention, so that two architectures are equal
            exactly when they build the same network.
        act_fn: activation, as diffusers names it.
        norm_num_groups: groups of each GroupNorm (not searched).
    """

    width: int
    multiplier: int
    depth: int
    attention: str
    head_dim: int | None
    act_fn: ActFn
    norm_num_groups: int

    @property
    def block_out_channels(self) -> tuple[int, int]:
        """Channels of the two levels."""
        return self.width, self.width * self.multiplier

    @property
    def problem(self) -> str | None:
        """Why no network can be built from it, or None."""
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                return f"{channels} channels are not divisible by {self.norm_num_groups} norm groups"
        if self.head_dim is not None:
            attended = self.block_out_channels if self.attention == "all" else self.block_out_channels[1:]
            for channels in attended:
                if channels % self.head_dim:
                    return f"{channels} channels are not divisible by heads of {self.head_dim}"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Reverse of `as_dict`.  Raises: DataError naming missing and unknown keys."""
        expected, given = set(cls.__dataclass_fields__), set(values)
        if expected != given:
            raise DataError(
                f"an architecture has the keys {sorted(expected)}; missing {sorted(expected - given)}, "
                f"unknown {sorted(given - expected)}"
            )
        return cls(**values)

    def unet_config(self, resolution: int, channels: int, num_classes: int) -> UNet2DConfig:
        """The network's diffusers config; `num_classes` real classes, the empty label comes after them."""
        from dataclasses import replace

        from mlx_tasks.config_training import Model
        from mlx_tasks.models.unet2d import UNet2DConfig

        model = Model(
            block_out_channels=self.block_out_channels,
            layers_per_block=self.depth,
            attention_levels=(self.attention == "all", self.attention in ("coarse", "all")),
            attention_head_dim=self.head_dim or self.width,
            act_fn=self.act_fn,
            norm_num_groups=self.norm_num_groups,
        )
        built = UNet2DConfig.build(model, resolution, channels, num_classes, self.act_fn)
        return replace(built, add_attention=self.attention != "none")


@dataclass(frozen=True)
class Space:
    """What may vary, each a tuple of the values allowed; `norm_num_groups` is fixed."""

    widths: tuple[int, ...]
    multipliers: tuple[int, ...]
    depths: tuple[int, ...]
    attention: tuple[str, ...]
    head_dims: tuple[int, ...]
    act_fns: tuple[ActFn, ...]
    norm_num_groups: int

    @classmethod
    def of(cls, config: Config) -> Space:
        """The space that the params span."""
        s = config.search
        axes = (s.widths, s.multipliers, s.depths, s.attention, s.head_dims, s.act_fns)
        return cls(*axes, config.model.norm_num_groups)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; equal for equal spaces."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def suggest(self, trial: optuna.Trial) -> Architecture:
        """Ask the trial for each value; head_dim only where there is attention."""
        width = _suggest(trial, "width", self.widths)
        multiplier = _suggest(trial, "multiplier", self.multipliers)
        depth = _suggest(trial, "depth", self.depths)
        attention = _suggest(trial, "attention", self.attention)
        head_dim = None if attention == "none" else _suggest(trial, "head_dim", self.head_dims)
        act_fn = _suggest(trial, "act_fn", self.act_fns)
        return Architecture(width, multiplier, depth, attention, head_dim, act_fn, self.norm_num_groups)

    def params(self, architecture: Architecture) -> dict[str, Any]:
        """The suggestions that lead to `architecture`, for `study.enqueue_trial`."""
        values = architecture.as_dict()
        del values["norm_num_groups"]
        return {name: value for name, value in values.items() if value is not None}

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture of the space that can be built, in a fixed order."""
        axes = (self.widths, self.multipliers, self.depths, self.attention, self.act_fns)
        for width, multiplier, depth, attention, act_fn in itertools.product(*axes):
            for head_dim in (None,) if attention == "none" else self.head_dims:
                candidate = Architecture(width, multiplier, depth, attention, head_dim, act_fn, self.norm_num_groups)
                if candidate.problem is None:
                    yield candidate


def _suggest(trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
    """One of `values`. Evenly spaced numbers are suggested as such, since the sampler then knows their order."""
    numbers = sorted(values)
    if len(numbers) > 1 and all(isinstance(value, int) for value in numbers):
        gaps = {b - a for a, b in itertools.pairwise(numbers)}
        if len(gaps) == 1 and min(gaps) > 0:
            return trial.suggest_int(name, numbers[0], numbers[-1], step=gaps.pop())
    return trial.suggest_categorical(name, list(dict.fromkeys(values)))
