"""Ceilings on what a bundle may ask for, and the memory it would take, told before anything is allocated.

The ceilings are far above what is published for pixels (1024 x 1024, 1000 timesteps, four resnets a level), and low
enough that building what they allow is a matter of moments. Whether it fits is then a question of memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError

if TYPE_CHECKING:
    from mlx_tasks.models.unet2d_config import UNet2DConfig

MOST = {
    "resolution": 2048,
    "sample_size": 2048,
    "channels": 512,
    "in_channels": 512,
    "out_channels": 512,
    "block_out_channels": 8192,
    "levels": 12,
    "layers_per_block": 16,
    "time_embedding_dim": 32768,
    "attention_head_dim": 8192,
    "norm_num_groups": 8192,
    "attn_norm_num_groups": 8192,
    "num_class_embeds": 100_001,
    "class_names": 100_000,
    "timesteps": 10_000,
}
"""Largest value of each size in a bundle's files; of lists (levels, class_names, timesteps) the longest."""
MOST_CHARACTERS = 256
"""Of one class name."""
SHARE = 0.5
"""Of the machine's memory that one bundle may take: while a server changes versions it holds two."""
LEAST_ROWS = 4
"""Images of a network call that must fit: so many are drawn at once where it is tried whether rows depend on others."""


def check_most(name: str, value: int, most: str = "") -> None:
    """Raises: DataError where a size is above its ceiling.  most: the ceiling's name, where it is another."""
    limit = MOST[most or name.rpartition(".")[2]]
    if value > limit:
        raise DataError(f"{name} must be at most {limit}, got {value}")


def whole(value: Any, least: int = 1) -> bool:
    """Whether a JSON value is a whole number of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def memory_limit() -> int:
    """Bytes that one bundle may take on this machine."""
    import psutil

    return int(SHARE * psutil.virtual_memory().total)


def check_memory(needed: int, what: str, limit: int | None = None) -> None:
    """Raises: DataError where this machine has less than is needed.  limit: bytes, if not this machine's."""
    limit = memory_limit() if limit is None else limit
    if needed > limit:
        raise DataError(
            f"{what} would take {needed / 2**30:.3g} GiB and may take {limit / 2**30:.3g} here, {SHARE:.0%} of the "
            "machine's memory: take a smaller model or a larger machine"
        )


def weights_bytes(parameters: int) -> int:
    """Of a network's weights while they are read: as stored, and as float32."""
    return 2 * 4 * parameters


def image_bytes(config: UNet2DConfig, side: int) -> int:
    """About what one image of side x side takes on its way through the network, float32.

    The skips that wait for the way up, and the larger of two: the scratch of the widest 3x3 convolution, whose input is
    a level's features beside a skip (nine copies of it, and as many on the way), and the score matrices of the largest
    attention. The factors are measured on MLX's CPU (tests/test_models_hostile.py); a GPU takes less.
    """
    skips = work = attention = 0
    widths = config.block_out_channels
    for level, channels in enumerate(widths):
        pixels = (max(1, side >> level)) ** 2
        deeper = widths[min(level + 1, len(widths) - 1)]
        skips += (config.layers_per_block + 1) * channels * pixels
        work = max(work, 20 * (channels + deeper) * pixels)
        middle = level == len(widths) - 1 and config.mid_block_type is not None and config.add_attention
        if "Attn" in config.down_block_types[level] or "Attn" in config.up_block_types[-1 - level] or middle:
            heads = max(1, channels // config.head_dim(channels))
            attention = max(attention, 8 * heads * pixels**2)
    return 4 * (skips + max(work, attention))


def rows_that_fit(config: UNet2DConfig, side: int, most_rows: int, parameters: int, limit: int | None = None) -> int:
    """Images of one network call that this machine has memory for, at most `most_rows`.

    Raises: DataError where not even LEAST_ROWS fit beside the weights.
    """
    limit = memory_limit() if limit is None else limit
    one, weights = image_bytes(config, side), weights_bytes(parameters)
    check_memory(weights + LEAST_ROWS * one, f"{LEAST_ROWS} images of {side} x {side} and the network's weights", limit)
    return max(1, min(most_rows, (limit - weights) // one))
