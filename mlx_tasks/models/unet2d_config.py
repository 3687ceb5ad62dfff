"""What a diffusers `UNet2DModel` is made of: its config.json as a frozen dataclass, checked key by key."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from mlx_tasks.config_training import Model
from mlx_tasks.errors import DataError
from mlx_tasks.models.activations import ACTIVATIONS
from mlx_tasks.models.limits import check_most, whole

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "num_train_timesteps": (None,),
}
_WHOLE = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
_WHOLE_OR_NONE = ("time_embedding_dim", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds")
_SWITCHES = ("center_input_sample", "flip_sin_to_cos", "add_attention")
_LISTS = ("down_block_types", "up_block_types", "block_out_channels")


@dataclass(frozen=True)
class UNet2DConfig:
    """A U-Net's shape in diffusers' own keys and defaults (diffusers 0.42, `UNet2DModel.__init__`).

    Keys mean what they mean there. `sample_size` is the image's side, or (height, width), or None for any.
    `attention_head_dim` None gives one head as wide as its level. `num_class_embeds` counts the labels, an empty
    label included. Every value is checked when the object is made.

    Raises: DataError naming the key, the value and the rule.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_levels(self)
        _check_groups(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNet2DConfig:
        """The config of a config.json's values; missing keys take diffusers' defaults.

        Keys that begin with an underscore are diffusers' own notes; `_class_name`, if there, must be UNet2DModel.
        Raises: DataError for an unknown key or an unsupported value.
        """
        name = values.get("_class_name", "UNet2DModel")
        if name != "UNet2DModel":
            raise DataError(f"_class_name must be UNet2DModel, got {name!r:.80}: this folder holds another network")
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in values.items() if not key.startswith("_")}
        unknown = sorted(set(given) - known)
        if unknown:
            raise DataError(f"config.json has keys that UNet2DModel does not know: {', '.join(unknown)}; remove them")
        typed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
        }
        return cls(**typed)

    def to_dict(self) -> dict[str, Any]:
        """Every key as plain JSON values, as diffusers writes its config.json (lists, not tuples)."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def build(
        cls, model: Model, resolution: int, channels: int, num_classes: int | None, act_fn: str | None = None
    ) -> UNet2DConfig:
        """The config of the pipeline's own U-Net.

        Args:
            model: widths, depth, attention and norm, from params.yaml.
            resolution: image side; a multiple of `model.stride`.
            channels: colour channels, in and out.
            num_classes: classes of the dataset; with any, one more label (the last index) stands for "no label".
            act_fn: activation; by default the params' own, which must then not be `auto`.

        Raises: DataError naming the value that breaks a rule.
        """
        levels = model.attention_levels
        return cls(
            sample_size=resolution,
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple(DOWN_BLOCKS[attends] for attends in levels),
            up_block_types=tuple(UP_BLOCKS[attends] for attends in reversed(levels)),
            block_out_channels=tuple(model.block_out_channels),
            layers_per_block=model.layers_per_block,
            act_fn=act_fn or model.act_fn,
            attention_head_dim=model.attention_head_dim,
            norm_num_groups=model.norm_num_groups,
            add_attention=any(levels),
            num_class_embeds=num_classes + 1 if num_classes else None,
        )

    @property
    def stride(self) -> int:
        """Image side over the side of the coarsest level: heights and widths must be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_embed_dim(self) -> int:
        """Width of the embedding of time and class."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def mid_attention_groups(self) -> int | None:
        """Groups of the norm before the middle's attention; None where diffusers puts no norm there."""
        if self.attn_norm_num_groups is not None:
            return self.attn_norm_num_groups
        return self.norm_num_groups if self.resnet_time_scale_shift == "default" else None

    def head_dim(self, channels: int) -> int:
        """Channels of one attention head at a level of that width."""
        return channels if self.attention_head_dim is None else self.attention_head_dim


def block_kind(name: str) -> str:
    """A block type without the prefix that diffusers' first configs carried."""
    return name.removeprefix("UNetRes")


def _refuse(config: UNet2DConfig, key: str, rule: str) -> None:
    raise DataError(f"{key} must be {rule}, got {getattr(config, key)!r:.200}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_types(config: UNet2DConfig) -> None:
    """Each value alone: a known choice, or a number in range and below its ceiling."""
    for key in _LISTS:
        if not isinstance(getattr(config, key), tuple) or not getattr(config, key):
            _refuse(config, key, "a list with one entry a level")
        check_most(f"the length of {key}", len(getattr(config, key)), "levels")
    for key, choices in _CHOICES.items():
        if getattr(config, key) not in choices or type(getattr(config, key)) not in map(type, choices):
            _refuse(config, key, "one of " + ", ".join(repr(choice) for choice in choices))
    for key in _WHOLE:
        if not whole(getattr(config, key)):
            _refuse(config, key, "a whole number of at least 1")
        check_most(key, getattr(config, key))
    for key in _WHOLE_OR_NONE:
        if getattr(config, key) is not None:
            if not whole(getattr(config, key)):
                _refuse(config, key, "a whole number of at least 1, or null")
            check_most(key, getattr(config, key))
    for key in _SWITCHES:
        if not isinstance(getattr(config, key), bool):
            _refuse(config, key, "true or false")
    size = config.sample_size
    if not (size is None or whole(size) or (isinstance(size, tuple) and len(size) == 2 and all(map(whole, size)))):
        _refuse(config, "sample_size", "a whole number, a pair of them, or null")
    for side in size if isinstance(size, tuple) else (size,):
        check_most("sample_size", side or 0)
    if not isinstance(config.act_fn, str) or config.act_fn.lower() not in ACTIVATIONS:
        _refuse(config, "act_fn", "one of " + ", ".join(ACTIVATIONS))
    if not _number(config.dropout) or not 0 <= config.dropout < 1:
        _refuse(config, "dropout", "in [0, 1)")
    if not _number(config.norm_eps) or config.norm_eps <= 0:
        _refuse(config, "norm_eps", "above 0")
    if not _number(config.mid_block_scale_factor) or config.mid_block_scale_factor == 0:
        _refuse(config, "mid_block_scale_factor", "a number other than 0")
    if not _number(config.freq_shift):
        _refuse(config, "freq_shift", "a number")


def _check_levels(config: UNet2DConfig) -> None:
    """The lists agree, and the image can be halved as often as there are levels below the first."""
    for channels in config.block_out_channels:
        if not whole(channels):
            _refuse(config, "block_out_channels", "whole numbers of at least 1")
        check_most("block_out_channels", channels)
    if config.freq_shift >= config.block_out_channels[0] // 2:
        _refuse(config, "freq_shift", "below half of the first level's channels")
    levels = len(config.block_out_channels)
    for key, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        names = getattr(config, key)
        if len(names) != levels:
            _refuse(config, key, f"a list of {levels} entries, one for each of block_out_channels")
        for name in names:
            if not isinstance(name, str) or block_kind(name) not in kinds:
                raise DataError(f"{key} must hold only {' and '.join(kinds)}, got {name!r:.80}")
    sides = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,)
    for side in sides:
        if side is not None and side % config.stride:
            raise DataError(
                f"sample_size must be a multiple of {config.stride}, the stride of {levels} levels, got {side}: "
                f"use {max(config.stride, side - side % config.stride)} or fewer levels"
            )


def _check_groups(config: UNet2DConfig) -> None:
    """Every normalised width splits into its groups, and every attended one into at least one head."""
    widths = config.block_out_channels
    for channels in widths:
        if channels % config.norm_num_groups:
            raise DataError(
                f"norm_num_groups must divide every level's channels, got {config.norm_num_groups} and {channels}"
            )
    down, up = config.down_block_types, config.up_block_types
    attended = {c for c, name in zip(widths, down, strict=True) if "Attn" in name}
    attended |= {c for c, name in zip(reversed(widths), up, strict=True) if "Attn" in name}
    if config.mid_block_type is not None and config.add_attention:
        attended.add(widths[-1])
        if config.mid_attention_groups is not None and widths[-1] % config.mid_attention_groups:
            _refuse(config, "attn_norm_num_groups", f"a divisor of the last level's {widths[-1]} channels")
    for channels in sorted(attended):
        if config.head_dim(channels) > channels:
            _refuse(config, "attention_head_dim", f"at most the {channels} channels of a level with attention")
