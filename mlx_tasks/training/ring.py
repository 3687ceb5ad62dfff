"""Several processes as one training: batches dealt by rank 0, gradients averaged over MLX's ring, weights kept alike.

Rank 0 holds the data and the plan; the others hold nothing that lasts. At each step rank 0 sends down the ring what the
others have to look at: their images with noise, levels and labels, drawn by it as for one process, so that what an
image meets does not depend on who computes it. Messages go from rank to rank + 1, each rank taking its part out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_tasks.errors import DataError, StageError, UnavailableError

logger = logging.getLogger(__name__)

Arrays = dict[str, mx.array]

DRIFT = 1e-3
"""Largest relative difference between two ranks' arrays that rounding may explain; above it one of them is wrong."""

_HEADER, _BUCKET = 4096, 32 * 2**20


def share_sizes(total: int, ranks: int) -> list[int]:
    """Images of each rank, in order: as even as they go, the first ones one more.  Raises: DataError for an empty one.

    >>> share_sizes(16, 3)
    [6, 5, 5]
    """
    if total < ranks:
        raise DataError(f"a batch of {total} images cannot be shared by {ranks} machines: raise train.batch_size")
    return [total // ranks + (rank < total % ranks) for rank in range(ranks)]


@dataclass(frozen=True)
class Order:
    """What rank 0 asks of the others.

    Attributes:
        kind: "step" (take an optimiser step), "begin" (take rank 0's arrays), "settle" (compare arrays) or "end".
        share: this rank's slice of the batch; empty but for a step.
        total: images of the whole batch.
        learning_rate, ema_decay: of the step.
    """

    kind: str
    share: Arrays
    total: int = 0
    learning_rate: float = 0.0
    ema_decay: float = 0.0


class Ring:
    """The processes of one training, as one of them sees them.

    Attributes:
        rank, size: this process's place, and how many there are.
        sockets: descriptors of this process's connections in it.
        talking_since: when the exchange that is going on began (`time.monotonic`), or None.
    """

    def __init__(
        self,
        group: mx.distributed.Group,
        sockets: Sequence[int] = (),
        explain: Callable[[str], StageError] = lambda reason: UnavailableError(f"the ring broke: {reason}"),
    ) -> None:
        """sockets: descriptors of this process's connections in the group, to wait at.

        explain: turns what MLX says of a broken ring into an error that names the machine behind it.
        """
        self.rank, self.size = group.rank(), group.size()
        self.talking_since: float | None = None
        self.sockets = tuple(sockets)
        self._group, self._explain = group, explain

    # What rank 0 calls.

    def deal(self, batch: Arrays, learning_rate: float, ema_decay: float) -> Arrays:
        """Send every other rank its share of the batch (B images, first axis); this rank's own share."""
        fields = [[name, str(a.dtype).removeprefix("mlx.core."), list(a.shape)] for name, a in batch.items()]
        with self._talking():
            self._send_header(
                {"kind": "step", "learning_rate": learning_rate, "ema_decay": ema_decay, "fields": fields}
            )
            mine = share_sizes(len(next(iter(batch.values()))), self.size)[0]
            self._send(_packed(batch, mine))
        return {name: array[:mine] for name, array in batch.items()}

    def begin(self, arrays: Arrays) -> None:
        """Give every rank these arrays: what they start or go on from."""
        with self._talking():
            self._send_header({"kind": "begin"})
            self._pass_on(arrays)

    def settle(self, arrays: Arrays) -> None:
        """Make sure that all ranks hold these arrays, bit by bit.

        Equal machines do, since they add the same sums. Where rounding differs between two kinds of machine, the others
        take rank 0's arrays, so that going on from the checkpoint written now equals going on without it.
        Raises: UnavailableError where a rank is further off than DRIFT.
        """
        with self._talking():
            self._send_header({"kind": "settle"})
            if self._alike(arrays):
                return
            self._pass_on(arrays)
            gaps = self._gather(mx.array([0.0]))
        for rank, gap in enumerate(gaps):
            logger.info("rank=%d took='the arrays of rank 0' relative_difference=%.2e", rank, gap)
        worst = int(np.argmax(gaps))
        if not gaps[worst] <= DRIFT:
            raise self._explain(
                f"rank {worst} computes other weights: they differ by {gaps[worst]:.2e} of their size, and rounding "
                f"explains {DRIFT:.0e}"
            )

    def close(self) -> None:
        """Tell the others that the training is over."""
        with self._talking():
            self._send_header({"kind": "end"})

    # What the other ranks call.

    def receive(self) -> Order:
        """The next order of rank 0, this rank's share taken out and the rest passed on."""
        if self.sockets:
            select.select(self.sockets, [], [])  # MLX waits by asking again and again, which takes a whole core
        with self._talking():
            raw = self._recv((_HEADER,))
            self._send(raw)
            header = json.loads(bytes(np.array(raw)).rstrip(b" "))
            if header["kind"] != "step":
                return Order(header["kind"], {})
            total = header["fields"][0][2][0]
            sizes = share_sizes(total, self.size)
            rows, own = sum(sizes[self.rank :]), sizes[self.rank]
            fields = [(name, getattr(mx, dtype), (rows, *shape[1:])) for name, dtype, shape in header["fields"]]
            batch = _unpacked(self._recv((sum(_bytes(dtype, shape) for _, dtype, shape in fields),)), fields)
            self._send(_packed(batch, own))
        share = {name: array[:own] for name, array in batch.items()}
        return Order("step", share, total, header["learning_rate"], header["ema_decay"])

    def take(self, arrays: Arrays) -> Arrays:
        """Rank 0's arrays, of these names, shapes and types, after its "begin"."""
        with self._talking():
            return self._pass_on(arrays)

    def follow(self, arrays: Arrays) -> Arrays | None:
        """Rank 0's arrays after its "settle", or None where these are the same bit by bit."""
        with self._talking():
            if self._alike(arrays):
                return None
            given = self._pass_on(arrays)
            gap = max(_gap(own, given[name]) for name, own in arrays.items())
            self._gather(mx.array([gap]))
        return given

    # What all call.

    def average(self, loss: mx.array, gradients: Any) -> tuple[mx.array, Any]:
        """(loss, gradients) averaged over the ranks; the same bits on each of them."""
        mx.eval(loss, gradients)
        with self._talking():
            both = nn.average_gradients({"loss": loss, "gradients": gradients}, self._group)
            mx.eval(both)
        return both["loss"], both["gradients"]

    def agree(self, word: str) -> bool:
        """Whether every rank calls this with the same word: the ring is the one that was meant."""
        digest = np.frombuffer(hashlib.sha256(word.encode()).digest(), np.int32)
        with self._talking():
            return _all_same(self._gather(mx.array(digest)))

    def _alike(self, arrays: Arrays) -> bool:
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(bytes(np.array(_as_bytes(arrays[name]))))
        return _all_same(self._gather(mx.array(np.frombuffer(digest.digest(), np.int32))))

    def _pass_on(self, arrays: Arrays) -> Arrays:
        """Rank 0's arrays on every rank, in buckets of some 32 MiB."""
        taken: Arrays = {}
        for names in _buckets(arrays):
            if self.rank == 0:
                raw = mx.concatenate([_as_bytes(arrays[name]) for name in names])
            else:
                raw = self._recv((sum(arrays[name].nbytes for name in names),))
            self._send(raw)
            taken |= _unpacked(raw, [(name, arrays[name].dtype, arrays[name].shape) for name in names])
        mx.eval(taken)
        return taken

    def _gather(self, row: mx.array) -> np.ndarray:
        """(ranks, N) of each rank's (N,), or (ranks,) for one number."""
        found = mx.distributed.all_gather(row[None], group=self._group)
        mx.eval(found)
        return np.array(found).squeeze(-1) if row.size == 1 else np.array(found)

    def _send_header(self, header: dict[str, Any]) -> None:
        text = json.dumps(header).encode("ascii")
        if len(text) > _HEADER:
            raise ValueError(f"a batch of so many fields ({len(text)} bytes of header) is more than {_HEADER}")
        self._send(mx.array(np.frombuffer(text.ljust(_HEADER), np.uint8)))

    def _send(self, raw: mx.array) -> None:
        """Bytes to the next rank; the last one has none."""
        if self.rank + 1 < self.size and raw.size:
            mx.eval(mx.distributed.send(raw, self.rank + 1, group=self._group))

    def _recv(self, shape: tuple[int, ...]) -> mx.array:
        raw = mx.distributed.recv(shape, mx.uint8, self.rank - 1, group=self._group)
        mx.eval(raw)
        return raw

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """What MLX raises of a lost peer (RuntimeError, "[ring] ...") becomes an error that names it."""
        self.talking_since = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if "[ring]" not in str(error):
                raise
            raise self._explain(str(error)) from error
        finally:
            self.talking_since = None


def _packed(batch: Arrays, start: int) -> mx.array:
    """The rows from `start` on, of all fields, as one array of bytes."""
    parts = [_as_bytes(array[start:]) for array in batch.values()]
    return mx.concatenate(parts)


def _unpacked(raw: mx.array, fields: list[tuple[str, mx.Dtype, tuple[int, ...]]]) -> Arrays:
    arrays, start = {}, 0
    for name, dtype, shape in fields:
        stop = start + _bytes(dtype, shape)
        arrays[name] = mx.contiguous(raw[start:stop]).view(dtype).reshape(shape)
        start = stop
    return arrays


def _as_bytes(array: mx.array) -> mx.array:
    return mx.contiguous(array).reshape(-1).view(mx.uint8)


def _bytes(dtype: mx.Dtype, shape: tuple[int, ...]) -> int:
    return dtype.size * int(np.prod(shape, dtype=np.int64))


def _buckets(arrays: Arrays) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in sorted(arrays):
        names.append(name)
        size += arrays[name].nbytes
        if size >= _BUCKET:
            yield names
            names, size = [], 0
    if names:
        yield names


def _gap(own: mx.array, given: mx.array) -> float:
    """Largest difference, as a share of the largest magnitude; infinite where one is not finite."""
    a, b = own.astype(mx.float32), given.astype(mx.float32)
    gap = float(mx.max(mx.abs(a - b)) / mx.maximum(mx.max(mx.abs(b)), 1e-12))
    return gap if np.isfinite(gap) else float("inf")


def _all_same(rows: np.ndarray) -> bool:
    return bool((rows == rows[0]).all())
