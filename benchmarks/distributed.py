"""What do several ranks on one machine bring, and what goes over the ring at each step?

    python benchmarks/distributed.py [--quick]

The demo's teacher on digits of 16 pixels, the total batch shared by 1, 2 and 3 processes with one BLAS thread each: the
train stage's own path (mlx_tasks/hosts), with its own batches. Each repeat starts a fresh ring, takes warm-up steps and
then times some; ring sizes take turns. Bytes are those that the kernel counted on rank 0's two connections.

Everything is on loopback of one Linux machine: this says what the ring costs and that shares compute side by side. It
says nothing of Thunderbolt, Ethernet or Metal. A rank that waits keeps a core busy (MLX's ring polls its sockets), so
with fewer cores than ranks the ranks take time from each other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, ratio, save, spread

from mlx_tasks import hardware

os.environ["MLX_TASKS_THREADS"] = "1"

RANKS = (1, 2, 3)
CASES = {"demo teacher, 64 images": 64, "demo teacher, 256 images": 256}
SIDE, CLASSES = 16, 10
WARMUP = 3
_ACKED, _RECEIVED = 120, 128
"""Offsets of tcpi_bytes_acked and tcpi_bytes_received in Linux's struct tcp_info (include/uapi/linux/tcp.h)."""


def one_ring(ranks: int, batch_size: int, steps: int) -> dict[str, float]:
    """Rank 0 of a ring: seconds of a step (median), and the bytes it sent and received in one."""
    hardware.prepare()
    from sklearn.datasets import load_digits

    from mlx_tasks.config_training import Train
    from mlx_tasks.data.loader import ImageSet
    from mlx_tasks.hosts.members import Members
    from mlx_tasks.hosts.places import ordered
    from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
    from mlx_tasks.params import load_config
    from mlx_tasks.training.batches import draw_batch
    from mlx_tasks.training.keys import named_key
    from mlx_tasks.training.loop import Plan, train_steps
    from mlx_tasks.training.teacher import named_schedule, teacher_learner

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)[..., None]
    data = ImageSet(images, digits.target.astype(np.int32), [""] * len(images), [str(n) for n in range(CLASSES)])
    config = UNet2DConfig.build(load_config(ROOT, "demo").model, SIDE, 1, CLASSES, "relu")
    model = UNet2DModel(config, key=named_key(0, "weights"))
    options = {"min_snr_gamma": 5.0, "weight_decay": 0.01, "max_grad_norm": 1.0}
    learner = teacher_learner(model, named_schedule("cosine", False), **options, micro_batch=128, compiled=False)
    train = Train(hosts=("127.0.0.1",) * ranks if ranks > 1 else (), batch_size=batch_size, hosts_port=41000)
    job = {
        "network": config.to_dict(),
        "noise_schedule": "cosine",
        "zero_terminal_snr": False,
        "options": options,
        "micro_batch": 128,
    }
    plan = Plan(
        steps=WARMUP + steps,
        batch_at=lambda step: draw_batch(data, batch_size, 1024, 0, "train-16", step),
        learning_rate_at=lambda step: 1e-3,
        ema_decay_at=lambda step: 0.9,
    )
    seconds, counted = [], (0, 0)
    with contextlib.ExitStack() as stack:
        members = stack.enter_context(Members(ordered(train.hosts), train, job)) if ranks > 1 else None
        learner.ring = members.ring if members else None
        for record in train_steps(learner, plan):
            if record.step == WARMUP:
                counted = _bytes(members)
            elif record.step > WARMUP:
                seconds.append(record.seconds)
        sent, received = (now - then for now, then in zip(_bytes(members), counted, strict=True))
    parameters = sum(array.size for name, array in learner.arrays().items() if name.startswith("model."))
    return {
        "seconds": float(np.median(seconds)),
        "sent": sent / steps,
        "received": received / steps,
        "parameters": parameters,
    }


def _bytes(members: Any) -> tuple[int, int]:
    """(sent, received) so far on this rank's ring connections."""
    sent = received = 0
    for descriptor in members.ring.sockets if members else ():
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        sent += struct.unpack_from("Q", info, _ACKED)[0]
        received += struct.unpack_from("Q", info, _RECEIVED)[0]
    return sent, received


def compare(name: str, batch_size: int, repeats: int, steps: int) -> dict[str, Any]:
    """One row: every ring size in turn, `repeats` times."""
    found: dict[int, list[dict[str, float]]] = {ranks: [] for ranks in RANKS}
    environment = os.environ | {"MLX_TASKS_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for _ in range(repeats):
        for ranks in RANKS:
            command = [sys.executable, str(Path(__file__)), "--ring", str(ranks), str(batch_size), str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
            if done.returncode:
                raise SystemExit(f"{ranks} ranks: {done.stderr[-2000:]}")
            found[ranks].append(json.loads(done.stdout.splitlines()[-1]))
            time.sleep(0.5)
    alone = [one["seconds"] for one in found[1]]
    rows: dict[str, Any] = {"case": name, "batch_size": batch_size, "parameters": found[1][0]["parameters"]}
    for ranks in RANKS:
        seconds = [one["seconds"] for one in found[ranks]]
        rows[f"ranks_{ranks}"] = {
            "steps_per_second": spread([1 / s for s in seconds]),
            "speed_over_one_rank": ratio(alone, seconds),
            "rank_0_sent_bytes_a_step": round(found[ranks][0]["sent"]),
            "rank_0_received_bytes_a_step": round(found[ranks][0]["received"]),
        }
    return rows


def main() -> None:
    """Compare every case and write benchmarks/results/distributed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two repeats of few steps: does it run at all")
    parser.add_argument("--ring", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ring:
        print(json.dumps(one_ring(*arguments.ring)))
        return
    repeats, steps, rows = (2, 3, []) if arguments.quick else (5, 10, [])
    load_before = os.getloadavg()[0]
    for name, batch_size in CASES.items():
        row = compare(name, batch_size, repeats, steps)
        rows.append(row)
        for ranks in RANKS:
            told = row[f"ranks_{ranks}"]
            print(
                name,
                f"{ranks} ranks",
                f"steps/s={told['steps_per_second']['median']:.3g}",
                "times={median:.2f} ({low:.2f} to {high:.2f})".format(**told["speed_over_one_rank"]),
                f"sent={told['rank_0_sent_bytes_a_step']}",
            )
    path = save(
        "distributed_quick" if arguments.quick else "distributed",
        question="Training steps a second of 1, 2 and 3 ranks on one machine (loopback only), and bytes over the ring",
        config={
            "quick": arguments.quick,
            "steps_timed": steps,
            "threads_a_rank": 1,
            "link": "loopback",
            "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
        rows=rows,
    )
    print(path)


if __name__ == "__main__":
    main()
