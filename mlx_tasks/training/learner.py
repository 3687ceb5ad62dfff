"""One optimiser step, shared by every training here: gradients in micro-batches, clipping, AdamW, averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_unflatten

from mlx_tasks.training.ema import Ema, flat_arrays
from mlx_tasks.training.optimizer import AdamW
from mlx_tasks.training.ring import Ring

Batch = dict[str, mx.array]
"""What a loss reads, by name; every array's first axis is the image."""

Loss = Callable[[nn.Module, Batch], mx.array]
"""(model, batch) -> mean loss over the batch's images, a scalar. All randomness is already in the batch."""


class Learner:
    """A model with its optimiser and its averaged weights: all that one step changes.

    Attributes:
        model: the network; its own weights are the raw ones.
        ema: the averaged weights.
        loss: what is made small.
        micro_batch: most images of one forward and backward pass.
        ring: the other processes of this training, or None where it is the only one.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        micro_batch: int = 128,
        compiled: bool = False,
        ring: Ring | None = None,
    ) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
        self.model, self.ema, self.micro_batch, self.ring = model, Ema(model), micro_batch, ring
        self.optimizer = AdamW(weight_decay)
        self.optimizer.init(model.trainable_parameters())
        self._max_grad_norm = max_grad_norm
        self.loss = loss
        self._value_and_grad = nn.value_and_grad(model, partial(loss, model))
        self._gradients, self._apply = self._value_and_grad, self._apply_gradients
        if compiled:
            # Compiled code must be told what it reads and changes besides its arguments. Taking gradients puts tracers
            # in the weights' place, so the weights are an output there too.
            weights, state = [model.state], [model.state, self.optimizer.state, self.ema.average]
            self._gradients = partial(mx.compile, inputs=weights, outputs=weights)(self._value_and_grad)
            self._apply = partial(mx.compile, inputs=state, outputs=state)(self._apply_gradients)

    def step(self, batch: Batch, learning_rate: float, ema_decay: float) -> tuple[mx.array, mx.array]:
        """(loss, gradient norm before clipping) of one optimiser step, evaluated with the changed state.

        In a ring rank 0 calls this with the whole batch, and the others call `step_on` with the shares it deals.
        """
        total = len(next(iter(batch.values())))
        share = batch if self.ring is None else self.ring.deal(batch, learning_rate, ema_decay)
        return self.step_on(share, total, learning_rate, ema_decay)

    def step_on(self, share: Batch, total: int, learning_rate: float, ema_decay: float) -> tuple[mx.array, mx.array]:
        """As `step`, where this process looks at `share`, its part of a batch of `total` images.

        The gradient of the mean over B images is the sum over micro-batches of size b of (b / B) times their mean's,
        so it depends neither on the micro-batch nor on who computes which, beyond float summation. One evaluation where
        one micro-batch suffices; with more, one for each, or their activations would be alive together.
        """
        mine, loss, gradients = len(next(iter(share.values()))), None, None
        ranks = 1 if self.ring is None else self.ring.size
        for part, size in _parts(share, mine, self.micro_batch):
            part_loss, part_gradients = self._gradients(part)
            if size * ranks == total:
                loss, gradients = part_loss, part_gradients
                break
            weight = size * ranks / total  # the ring takes the mean over ranks
            part_loss, part_gradients = weight * part_loss, tree_map(lambda g, w=weight: w * g, part_gradients)
            loss = part_loss if loss is None else loss + part_loss
            gradients = part_gradients if gradients is None else tree_map(mx.add, gradients, part_gradients)
            mx.eval(loss, gradients)
        assert loss is not None and gradients is not None, "a batch has at least one image"
        if self.ring is not None:
            loss, gradients = self.ring.average(loss, gradients)
        norm = self._apply(gradients, mx.array(learning_rate), mx.array(ema_decay))
        mx.eval(loss, norm, self.model.state, self.optimizer.state, self.ema.average)
        return loss, norm

    def begin(self) -> None:
        """Before the first step: in a ring, all take the arrays of rank 0, which it may have from a checkpoint."""
        if self.ring is not None:
            self.ring.begin(self.arrays())

    def settle(self) -> None:
        """Before a checkpoint: in a ring, all hold the arrays that it will hold."""
        if self.ring is not None:
            self.ring.settle(self.arrays())

    def follow(self) -> None:
        """What a rank other than 0 does: whatever rank 0 asks, until it says that the training is over."""
        assert self.ring is not None and self.ring.rank > 0
        while (order := self.ring.receive()).kind != "end":
            if order.kind == "step":
                self.step_on(order.share, order.total, order.learning_rate, order.ema_decay)
            elif order.kind == "begin":
                self.restore(self.ring.take(self.arrays()))
            elif (arrays := self.ring.follow(self.arrays())) is not None:
                self.restore(arrays)

    def arrays(self) -> dict[str, mx.array]:
        """Everything a step changes, by flat name, for a checkpoint."""
        return {
            **{f"model.{name}": a for name, a in flat_arrays(self.model.trainable_parameters()).items()},
            **{f"average.{name}": a for name, a in self.ema.average.items()},
            **{f"optimizer.{name}": a for name, a in flat_arrays(self.optimizer.state).items()},
        }

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Take the arrays of `arrays()` back.  Raises: ValueError naming what is missing or left over."""
        own = self.arrays()
        if set(own) != set(arrays):
            raise ValueError(f"the checkpoint holds other arrays than this model: {sorted(set(own) ^ set(arrays))[:8]}")
        wrong = [name for name, array in arrays.items() if array.shape != own[name].shape]
        if wrong:
            raise ValueError(f"the checkpoint's shapes differ from this model's: {wrong[:8]}")
        groups: dict[str, list[tuple[str, mx.array]]] = {"model": [], "average": [], "optimizer": []}
        for name, array in arrays.items():
            group, _, rest = name.partition(".")
            groups[group].append((rest, array))
        self.model.update(tree_unflatten(groups["model"]))
        self.ema.average.update(groups["average"])
        _fill(self.optimizer.state, tree_unflatten(groups["optimizer"]))

    def _apply_gradients(self, gradients: dict, learning_rate: mx.array, ema_decay: mx.array) -> mx.array:
        clipped, norm = optim.clip_grad_norm(gradients, self._max_grad_norm)
        self.optimizer.learning_rate = learning_rate
        self.optimizer.update(self.model, clipped)
        self.ema.update(self.model, ema_decay)
        return norm


def _parts(batch: Batch, total: int, size: int) -> Iterator[tuple[Batch, int]]:
    """The batch in slices of at most `size` images, with each slice's count."""
    if size >= total:
        yield batch, total
        return
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield {name: array[start:stop] for name, array in batch.items()}, stop - start


def _fill(tree: dict | list, values: dict | list) -> None:
    """Put `values`' leaves into `tree` in place: compiled steps hold on to the containers."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, (dict, list)):
            _fill(tree[key], value)
        else:
            tree[key] = value
