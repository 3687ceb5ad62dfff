"""How many training steps a second does our U-Net take in MLX, against the same network in torch?

    python benchmarks/steps_per_second.py [--quick]

The network is diffusers' `UNet2DModel` on the torch side and ours on the other, with one set of weights, the same
noise, a mean squared error, and AdamW; both on this machine's device with the same threads, steps taken in turn. The
ratio is torch's seconds over ours, step pair by step pair: above 1, MLX is faster. On Linux both compute on the CPU;
torch runs in its default layout.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from record import ROOT, interleaved, ratio, save, spread

from mlx_tasks import hardware

MACHINE = hardware.prepare()

import diffusers  # noqa: E402
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402
import torch  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mlx_tasks.config_training import Model  # noqa: E402
from mlx_tasks.models.folder import save_unet  # noqa: E402
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel  # noqa: E402
from mlx_tasks.params import load_config  # noqa: E402

LEARNING_RATE, CLASSES = 1e-3, 10
DEMO = load_config(ROOT, "demo").model
CASES = {
    "demo teacher, 8 px": (DEMO, 8, "relu", 64),
    "demo teacher, 16 px": (DEMO, 16, "relu", 64),
    "demo teacher with SiLU, 16 px": (DEMO, 16, "silu", 64),
    "default teacher, 16 px": (Model(), 16, "relu", 64),
    "smallest searched, 16 px": (Model(block_out_channels=(16, 16), attention_head_dim=8), 16, "relu", 64),
    "three levels, attention at 8 px, 32 px": (
        Model(block_out_channels=(32, 64, 64), attention_levels=(False, False, True)),
        32,
        "relu",
        16,
    ),
}


def batch(config: UNet2DConfig, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noisy images, timesteps, labels and targets."""
    random = np.random.default_rng(0)
    shape = (count, config.sample_size, config.sample_size, config.in_channels)
    x, target = (random.standard_normal(shape, dtype=np.float32) for _ in range(2))
    return x, random.integers(0, 1000, count).astype(np.float32), random.integers(0, CLASSES, count), target


def mlx_step(model: UNet2DModel, data: tuple[np.ndarray, ...]) -> Callable[[], float]:
    """One optimiser step; gives the loss before it."""
    x, t, labels, target = (mx.array(a) for a in data)
    optimiser = optim.AdamW(LEARNING_RATE)
    value_and_grad = nn.value_and_grad(model, lambda: mx.square(model(x, t, labels) - target).mean())

    def step() -> float:
        loss, gradients = value_and_grad()
        optimiser.update(model, gradients)
        mx.eval(loss, model.parameters(), optimiser.state)
        return loss.item()

    return step


def torch_step(model: diffusers.UNet2DModel, data: tuple[np.ndarray, ...]) -> Callable[[], float]:
    """The same in torch, on the device that MLX has here."""
    device = {"metal": "mps", "cuda": "cuda", "cpu": "cpu"}[MACHINE.kind]
    model = model.to(device).train()
    x, t, labels, target = (torch.tensor(a, device=device) for a in data)
    x, target = (a.permute(0, 3, 1, 2).contiguous() for a in (x, target))
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE)

    def step() -> float:
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x, t, labels).sample, target)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def compare(name: str, shape: Model, resolution: int, act_fn: str, count: int, repeats: int) -> dict:
    """One row of the results."""
    config = UNet2DConfig.build(shape, resolution, 1, CLASSES, act_fn)
    model, data = UNet2DModel(config), batch(config, count)
    with tempfile.TemporaryDirectory() as folder:
        save_unet(model, Path(folder) / "unet")
        twin = diffusers.UNet2DModel.from_pretrained(Path(folder) / "unet")
    ours, theirs = mlx_step(model, data), torch_step(twin, data)
    first_losses = ours(), theirs()
    if abs(first_losses[0] - first_losses[1]) > 1e-4:
        raise SystemExit(f"{name}: the two are not one network: losses {first_losses}")
    seconds = interleaved({"mlx": ours, "torch": theirs}, repeats=repeats)
    return {
        "case": name,
        "parameters": sum(value.size for _, value in tree_flatten(model.parameters())),
        "batch_size": count,
        "mlx_steps_per_second": spread([1 / s for s in seconds["mlx"]]),
        "torch_steps_per_second": spread([1 / s for s in seconds["torch"]]),
        "torch_seconds_over_mlx_seconds": ratio(seconds["torch"], seconds["mlx"]),
        "config": config.to_dict(),
    }


def main() -> None:
    """Compare every case and write benchmarks/results/steps_per_second.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and images: does it run at all")
    quick = parser.parse_args().quick
    torch.set_num_threads(MACHINE.threads)
    repeats, rows = 3 if quick else 15, []
    for name, (shape, resolution, act_fn, count) in CASES.items():
        row = compare(name, shape, resolution, act_fn, count // 8 if quick else count, repeats)
        rows.append(row)
        found = {key: value["median"] for key, value in row.items() if isinstance(value, dict) and "median" in value}
        print(name, *(f"{key}={value:.3g}" for key, value in found.items()))
    settings = {"quick": quick, "threads": MACHINE.threads, "optimiser": "AdamW", "diffusers": diffusers.__version__}
    path = save(
        "steps_per_second_quick" if quick else "steps_per_second",
        question="Training steps a second of our U-Net in MLX against diffusers' in torch, same weights and threads",
        config=settings,
        rows=rows,
    )
    print(path)


if __name__ == "__main__":
    main()
