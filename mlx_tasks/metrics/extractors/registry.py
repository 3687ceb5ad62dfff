"""The extractors by name: what each is for, what it needs, how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError

Weights = Path | str | None


@dataclass(frozen=True)
class Entry:
    """One extractor.

    Attributes:
        make: (path of the weights or None) -> the extractor; imports what it needs only then.
        scores: the published metrics that it stands behind.
        needs: the file it needs, in words; "" for none.
    """

    make: Callable[[Weights], Any]
    scores: tuple[str, ...]
    needs: str = ""


def _inception(path: Weights) -> Any:
    from mlx_tasks.metrics.extractors.inception import InceptionV3

    return InceptionV3(path)


def _clip(name: str) -> Callable[[Weights], Any]:
    def make(path: Weights) -> Any:
        from mlx_tasks.metrics.extractors.clip import Clip

        return Clip(path, name)

    return make


def _dinov2(name: str) -> Callable[[Weights], Any]:
    def make(path: Weights) -> Any:
        from mlx_tasks.metrics.extractors.dinov2 import Dinov2

        return Dinov2(path, name)

    return make


def _lpips(net: str) -> Callable[[Weights], Any]:
    def make(path: Weights) -> Any:
        from mlx_tasks.metrics.extractors.lpips import Lpips

        return Lpips(net, path)  # type: ignore[arg-type]

    return make


EXTRACTORS = {
    "inception_v3_fid": Entry(
        _inception, ("fid", "fid_infinity", "kid", "inception_score"), "pt_inception-2015-12-05-6726825d.pth"
    ),
    **{
        f"clip_{size}": Entry(_clip(f"clip_{size}"), ("cmmd", "clip_score"), "a transformers folder of OpenAI's CLIP")
        for size in ("vit_b32", "vit_b16", "vit_l14", "vit_l14_336")
    },
    **{
        f"dinov2_vit{size}14": Entry(_dinov2(f"dinov2_vit{size}14"), ("fd_dinov2",), "a transformers folder of DINOv2")
        for size in "sblg"
    },
    "lpips_alex": Entry(_lpips("alex"), ("lpips_diversity",), "alexnet-owt-7be5be79.pth"),
    "lpips_vgg": Entry(_lpips("vgg"), ("lpips_diversity",), "vgg16-397923af.pth"),
}


def make_extractor(name: str, path: Weights = None) -> Any:
    """The named extractor with its weights.  Raises: DataError listing the names, or as its weights' errors."""
    if name not in EXTRACTORS:
        raise DataError(f"no extractor named {name!r}; there are: {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name].make(path)
