"""One rank of a small ring, as a process: ring_rank.py CASE RANK FOLDER PORT...; what it found goes to FOLDER."""

import json
import sys
import time
from pathlib import Path

from mlx_tasks import hardware

hardware.prepare()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from training_world import TINY, digits  # noqa: E402

from mlx_tasks.config_training import Model  # noqa: E402
from mlx_tasks.diffusion.learned_schedule import BINS, learned_schedule  # noqa: E402
from mlx_tasks.errors import StageError  # noqa: E402
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel  # noqa: E402
from mlx_tasks.training.batches import draw_batch  # noqa: E402
from mlx_tasks.training.schedule_learning import follow  # noqa: E402
from mlx_tasks.training.teacher import named_schedule, teacher_learner  # noqa: E402

SCHEDULE = named_schedule("learned", False)


def batch(step, size=11):
    """A batch that a learned schedule weighs."""
    plain = draw_batch(digits(8), size, 1024, 0, "train-8", step)
    return follow(plain, learned_schedule(SCHEDULE, tuple(np.linspace(0.1, 3.0, BINS))))


def learner(ring=None, micro_batch=128, key=0):
    """A small teacher; the gradients of its last step are kept in `.seen`."""
    config = UNet2DConfig.build(Model(**TINY["model"]), 8, 1, 10, "relu")
    made = teacher_learner(
        UNet2DModel(config, key=mx.random.key(key)), SCHEDULE, min_snr_gamma=5.0, weight_decay=0.01, max_grad_norm=1.0,
        micro_batch=micro_batch, compiled=False, ring=ring,
    )  # fmt: skip
    apply, made.seen = made._apply, {}

    def kept(gradients, *rest):
        made.seen = {name: np.array(gradient) for name, gradient in tree_flatten(gradients)}
        return apply(gradients, *rest)

    made._apply = kept
    return made


def steps(ring, rank, folder):
    """Three steps from rank 0's weights, which another rank does not have; micro-batches on one of them."""
    made = learner(ring, micro_batch=2 if rank == 1 else 128, key=rank)
    rows = []
    if rank == 0:
        made.begin()
        for step in range(3):
            loss, norm = made.step(batch(step), 1e-3, 0.9)
            rows.append([loss.item(), norm.item()])
            np.savez(folder / f"gradients-{step}.npz", **made.seen)
        made.settle()
        ring.close()
    else:
        made.follow()
    np.savez(folder / f"arrays-{rank}.npz", **{name: np.array(a) for name, a in made.arrays().items()})
    (folder / f"rows-{rank}.json").write_text(json.dumps(rows))


def drift(ring, rank, folder, by):
    """One step, then rank 1's weights are off by a factor of 1 + `by`, then all settle."""
    made = learner(ring)
    error = ""
    if rank == 0:
        made.begin()
        made.step(batch(0), 1e-3, 0.9)
        try:
            made.settle()
            ring.close()
        except StageError as found:
            error = str(found)
    else:
        step_on = made.step_on

        def stray(*arguments):
            step_on(*arguments)
            if rank == 1:
                for name, array in made.ema.average.items():
                    made.ema.average[name] = array * (1 + by)

        made.step_on = stray
        if by < 0.1:
            made.follow()
        else:
            try:
                made.follow()
            except StageError:
                pass  # rank 0 has ended
    np.savez(folder / f"arrays-{rank}.npz", **{name: np.array(a) for name, a in made.arrays().items()})
    (folder / f"rows-{rank}.json").write_text(json.dumps(error))


def meet(folder: Path, rank: int, ranks: int) -> None:
    """Wait for all ranks to have started, as a rendezvous does: MLX's ring gives up on a late one."""
    (folder / f"here-{rank}").touch()
    deadline = time.monotonic() + 180
    while len(list(folder.glob("here-*"))) < ranks:
        assert time.monotonic() < deadline, "a rank did not start"
        time.sleep(0.05)


def main():
    from mlx_tasks.hosts.rendezvous import join
    from mlx_tasks.training.ring import Ring

    case, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    meet(folder, rank, len(sys.argv) - 4)
    ring = Ring(*join([f"127.0.0.1:{port}" for port in sys.argv[4:]], rank))
    if case == "steps":
        steps(ring, rank, folder)
    else:
        drift(ring, rank, folder, float(case))


if __name__ == "__main__":
    main()
