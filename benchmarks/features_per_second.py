"""How many images a second does each feature extractor take in MLX, against its reference in torch?

    python benchmarks/features_per_second.py [--threads N]

Random weights of the published sizes, one batch, taken in turn; the ratio is torch's seconds over ours, repeat by
repeat: above 1, MLX is faster. `random_conv` and `self_supervised` have no reference elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, interleaved, ratio, save, spread

sys.path.insert(0, str(ROOT / "tests"))
PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--threads", type=int, default=1, help="BLAS threads of both")
PARSER.add_argument("--repeats", type=int, default=5)
ARGUMENTS = PARSER.parse_args()
os.environ["MLX_TASKS_THREADS"] = str(ARGUMENTS.threads)

from mlx_tasks import hardware  # noqa: E402

MACHINE = hardware.prepare()

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch_references import InceptionV3ForFid, alexnet_features, randomise, vgg16_features  # noqa: E402

from mlx_tasks.metrics.extractors.backbones import FeatureStack  # noqa: E402
from mlx_tasks.metrics.extractors.clip import Clip  # noqa: E402
from mlx_tasks.metrics.extractors.dinov2 import Dinov2  # noqa: E402
from mlx_tasks.metrics.extractors.inception import InceptionV3  # noqa: E402
from mlx_tasks.metrics.extractors.self_supervised import (  # noqa: E402
    Encoder,
    FeatureConfig,
    SelfSupervisedFeatures,
    encoder_moments,
    fit_projection,
)
from mlx_tasks.metrics.random_conv import RandomConvFeatures  # noqa: E402

Run = Callable[[], Any]


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    rows = []
    for name, (count, make) in CASES.items():
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            ours, theirs = make(Path(folder), count)
            seconds = interleaved({"mlx": ours} | ({"torch": theirs} if theirs else {}), repeats=ARGUMENTS.repeats)
        row = {"extractor": name, "batch": count, "mlx_per_second": spread([count / s for s in seconds["mlx"]])}
        if theirs:
            row["torch_per_second"] = spread([count / s for s in seconds["torch"]])
            row["torch_seconds_over_mlx_seconds"] = ratio(seconds["torch"], seconds["mlx"])
        rows.append(row)
        print(
            name, {key: round(value["median"], 3) for key, value in row.items() if isinstance(value, dict)}, flush=True
        )
    config = {"threads": MACHINE.threads, "weights": "random, of the published sizes"}
    print(save("features_per_second", question="How many images a second per extractor?", config=config, rows=rows))


def noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, side, side, 3)).astype(np.float32)


def inception(folder: Path, count: int) -> tuple[Run, Run]:
    import mlx.core as mx

    reference = randomise(InceptionV3ForFid(), 0)
    save_file({k: v.contiguous() for k, v in reference.state_dict().items() if v.ndim}, folder / "w.safetensors")
    network, x = InceptionV3(folder / "w.safetensors"), noise(count, 299)
    mine, tensor = mx.array(x), torch.tensor(x.transpose(0, 3, 1, 2)).contiguous()
    return lambda: mx.eval(network.pooled(mine)), lambda: reference(tensor)[0]


def clip(folder: Path, count: int) -> tuple[Run, Run]:
    import mlx.core as mx

    reference = transformers.CLIPModel(transformers.CLIPConfig()).eval()
    reference.save_pretrained(folder)
    network, x = Clip(folder), noise(count, 224)
    mine, tensor = mx.array(x), torch.tensor(x.transpose(0, 3, 1, 2)).contiguous()
    return lambda: mx.eval(network.encode_images(mine)), lambda: reference.vision_model(tensor)


def dinov2(folder: Path, count: int) -> tuple[Run, Run]:
    import mlx.core as mx

    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518}
    reference = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    reference.save_pretrained(folder)
    network, x = Dinov2(folder), noise(count, 224)
    mine, tensor = mx.array(x), torch.tensor(x.transpose(0, 3, 1, 2)).contiguous()
    return lambda: mx.eval(network.tokens(mine)), lambda: reference(tensor)


def backbone(kind: str) -> Callable[[Path, int], tuple[Run, Run]]:
    def make(folder: Path, count: int) -> tuple[Run, Run]:
        import mlx.core as mx

        reference = randomise({"alex": alexnet_features, "vgg": vgg16_features}[kind](), 0)
        save_file({f"features.{k}": v for k, v in reference.state_dict().items()}, folder / "w.safetensors")
        network, x = FeatureStack(kind, folder / "w.safetensors"), noise(count, 64)
        mine, tensor = mx.array(x), torch.tensor(x.transpose(0, 3, 1, 2)).contiguous()
        return lambda: mx.eval(network(mine)), lambda: reference(tensor)

    return make


def built_in(kind: str) -> Callable[[Path, int], tuple[Run, None]]:
    def make(folder: Path, count: int) -> tuple[Run, None]:
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        if kind == "random_conv":
            space: Any = RandomConvFeatures(3)
        else:
            encoder = Encoder(FeatureConfig(3, 32))
            space = SelfSupervisedFeatures(encoder, *fit_projection(encoder_moments(encoder, images), 32))
        return lambda: space(images), None

    return make


CASES: dict[str, tuple[int, Callable[[Path, int], tuple[Run, Run | None]]]] = {
    "inception_v3_fid, 299 px": (8, inception),
    "clip_vit_b32, 224 px": (8, clip),
    "dinov2_vits14, 224 px": (4, dinov2),
    "lpips backbone alex, 64 px": (32, backbone("alex")),
    "lpips backbone vgg, 64 px": (16, backbone("vgg")),
    "random_conv, 32 px": (256, built_in("random_conv")),
    "self_supervised, 32 px": (256, built_in("self_supervised")),
}
"""Name -> (batch, make(folder, batch) -> (run ours, run the reference or None)); a new extractor is one row."""


if __name__ == "__main__":
    main()
