"""Images as a published network wants them: resized with antialiasing, quantised or not as its authors did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.extractors.base import rgb_images

FILTERS = ("bicubic", "bilinear", "lanczos", "box")


@dataclass(frozen=True)
class Preprocessing:
    """Everything between an 8-bit image and the network; part of the extractor's identity.

    Attributes:
        side: pixels of the network's input.
        filter: PIL's resampling filter. PIL widens its filters when it shrinks (antialiasing); many libraries do not.
        quantize: True resizes the 8-bit image, so the result is rounded to 8 bits, as image processors do; False
            resizes each channel as floats, as clean-fid does.
        crop: none squeezes to side x side; center resizes the shorter side to `resize` and cuts the middle out.
        mean, std: of each channel, for values in [0, 1]: (x - mean) / std.
        resize: shorter side before the cut; 0 for `side`.
    """

    side: int
    filter: Literal["bicubic", "bilinear", "lanczos", "box"] = "bicubic"
    quantize: bool = True
    crop: Literal["none", "center"] = "none"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: int = 0

    def __post_init__(self) -> None:
        if self.side < 1 or self.filter not in FILTERS or not all(s > 0 for s in self.std):
            raise DataError(f"preprocessing needs side >= 1, a filter of {', '.join(FILTERS)}, std > 0; got {self}")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, side, side, 3) float32 of images (N, H, W, 1 or 3) uint8.  Raises: DataError as `rgb_images`."""
        resized = np.stack([self._one(image) for image in rgb_images(images)])
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (resized / np.float32(255) - mean) / std

    def _one(self, image: np.ndarray) -> np.ndarray:
        """(side, side, 3) float32 in 0..255 (a little beyond where bicubic overshoots and nothing is rounded)."""
        height, width, _ = image.shape
        if self.crop == "none":
            return _resized(image, self.side, self.side, self.filter, self.quantize)
        short = self.resize or self.side
        scale = short / min(height, width)
        # the longer side is cut off, not rounded, as torchvision's and transformers' resize to a shorter side does
        new_height, new_width = (short if s == min(height, width) else int(s * scale) for s in (height, width))
        resized = _resized(image, new_height, new_width, self.filter, self.quantize)
        return _center(resized, self.side)


def _resized(image: np.ndarray, height: int, width: int, name: str, quantize: bool) -> np.ndarray:
    from PIL import Image

    method = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "lanczos": Image.Resampling.LANCZOS,
        "box": Image.Resampling.BOX,
    }[name]
    if quantize:
        return np.asarray(Image.fromarray(image).resize((width, height), method), np.float32)
    channels = [Image.fromarray(image[..., c].astype(np.float32)).resize((width, height), method) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _center(image: np.ndarray, side: int) -> np.ndarray:
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]
