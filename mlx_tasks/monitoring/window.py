"""The window: what a server made, a bounded and append-only record in Parquet, one row an image or refused request.

    WINDOW/part-<milliseconds>-<number>.parquet      written whole; the oldest go once there are too many rows

A row holds when, how it ended, which version drew it with which steps, how long that took, its class and seed, the
features that the monitor compares, a few numbers of the picture, and, for one image in `thumb_every`, the picture.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_bytes, read_json
from mlx_tasks.metrics.scalars import IMAGE_TEXT, SCALARS, picture_numbers

if TYPE_CHECKING:
    import pandas as pd

    from mlx_tasks.registry.class_captions import ClassCaptions

logger = logging.getLogger(__name__)

PART_ROWS = 256
PART_S = 20.0
READERS = 2
"""Versions whose image-text models are kept in memory."""
QUEUED_IMAGES = 2000
"""Images that may wait to be recorded; beyond it rows are missed rather than requests slowed or memory filled."""


@dataclass(frozen=True)
class Made:
    """One request as the window keeps it.

    Attributes:
        status: HTTP status of the answer; above 399 there are no images.
        images: (N, H, W, C) uint8, or None.
        model, version, digest: of what drew them.
        classes: name of each image's class; empty for any.
        seeds: of each image.
        nfe: network evaluations of an image.
        plan: "own" for the bundle's own steps, else the quality level or "custom".
        waited_ms, drawn_ms: in the queue, and from the first network call to the last.
        bundle: folder of what drew them; its image-text model, if it has one, scores images that name a class.
        at: Unix time.
    """

    status: int
    images: np.ndarray | None = None
    model: str = ""
    version: str = ""
    digest: str = ""
    classes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    nfe: int = 0
    plan: str = ""
    waited_ms: float = 0.0
    drawn_ms: float = 0.0
    bundle: Path | None = None
    at: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """Its rows in the window."""
        return max(1, len(self.seeds))


class Recorder(threading.Thread):
    """Writes the window beside the server's work; a full disk or a slow one costs rows, never an answer.

    Attributes:
        unrecorded: images that were not kept.
    """

    def __init__(
        self, folder: Path, most_rows: int = 20_000, thumb_every: int = 20, features_per_s: float = 50.0
    ) -> None:
        """features_per_s: images whose features are computed, at most; the others' rows hold none."""
        super().__init__(name="recorder", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.unrecorded = 0
        self._folder, self._most_rows, self._thumb_every = folder, most_rows, thumb_every
        self._per_s, self._allowance, self._refilled = features_per_s, 2 * features_per_s, time.monotonic()
        self._queue: queue.SimpleQueue[Made | None] = queue.SimpleQueue()
        self._queued, self._counting = 0, threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._since = time.monotonic()
        self._numbers, self._seen = itertools.count(), itertools.count()
        self._spaces: dict[int, Any] = {}
        self._readers: dict[str, tuple[ClassCaptions, list[str]] | None] = {}

    def add(self, made: Made) -> None:
        """Record a request, soon."""
        with self._counting:
            if self._queued + made.size > QUEUED_IMAGES:
                self.unrecorded += len(made.seeds)
                return
            self._queued += made.size
        self._queue.put(made)

    def stop(self) -> None:
        """Write what came and end."""
        self._queue.put(None)

    def run(self) -> None:
        """Take, compute, and write a part once there are rows or time enough."""
        while True:
            try:
                made = self._queue.get(timeout=1.0)
            except queue.Empty:
                made = False
            if made:
                with self._counting:
                    self._queued -= made.size
            try:
                if made:
                    self._rows += self._described(made)
                due = len(self._rows) >= PART_ROWS or time.monotonic() - self._since >= PART_S
                if self._rows and (due or made is None):
                    self._write()
            except Exception as error:
                known = isinstance(error, OSError)  # a full disk needs no traceback, and comes again
                logger.error("window=missed rows=%d: %s", len(self._rows), error, exc_info=None if known else error)
                self.unrecorded += len(self._rows)
                self._rows.clear()
            if made is None:
                return

    def _described(self, made: Made) -> list[dict[str, Any]]:
        common = {
            "at": made.at,
            "status": made.status,
            "model": made.model,
            "version": made.version,
            "digest": made.digest,
            "nfe": made.nfe,
            "plan": made.plan,
            "waited_ms": made.waited_ms,
            "drawn_ms": made.drawn_ms,
        }
        if made.images is None:
            return [common | _empty()]
        measured = picture_numbers(made.images)
        features = self._features(made.images)
        if features is not None and (agreement := self._agreement(made)) is not None:
            measured[IMAGE_TEXT] = agreement
        rows = []
        for i, image in enumerate(made.images):
            own = {name: float(values[i]) for name, values in measured.items()}
            thumb = None
            if next(self._seen) % self._thumb_every == 0:
                from mlx_tasks.registry.png import encode_png

                thumb = encode_png(image)
            told = {"class": made.classes[i] if made.classes else "", "seed": made.seeds[i], "thumbnail": thumb}
            told |= {"features": None if features is None else features[i]}
            rows.append(common | {IMAGE_TEXT: None} | own | told)
        return rows

    def _features(self, images: np.ndarray) -> np.ndarray | None:
        """(N, D) float32 in the space of registered references, as far as the allowance goes."""
        now = time.monotonic()
        self._allowance = min(2 * self._per_s, self._allowance + self._per_s * (now - self._refilled))
        self._refilled = now
        if self._allowance < len(images):
            return None
        self._allowance -= len(images)
        from mlx_tasks.metrics.random_conv import RandomConvFeatures

        channels = images.shape[-1]
        space = self._spaces.setdefault(channels, RandomConvFeatures(channels))
        return space(images).astype(np.float32)

    def _agreement(self, made: Made) -> np.ndarray | None:
        """(N,) image-text scores, where the version has a model for them and every image names a class."""
        if made.images is None or made.bundle is None or not made.classes or not all(made.classes):
            return None
        if made.digest not in self._readers:
            if len(self._readers) >= READERS:
                self._readers.pop(next(iter(self._readers)))
            self._readers[made.digest] = _reader(made.bundle)
        reader = self._readers[made.digest]
        if reader is None:
            return None
        captions, names = reader
        return captions.scores(made.images, [names.index(name) for name in made.classes])

    def _write(self) -> None:
        import io

        import pandas as pd

        self._since, buffer = time.monotonic(), io.BytesIO()
        pd.DataFrame(self._rows).to_parquet(buffer, index=False)
        name = f"part-{time.time_ns() // 1_000_000:015d}-{next(self._numbers) % 1000:03d}.parquet"
        atomic_write_bytes(self._folder / name, buffer.getvalue())
        self._rows.clear()
        self._trim()

    def _trim(self) -> None:
        """Remove the oldest parts whose rows are all beyond those that are kept."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        kept = 0
        for path in sorted(self._folder.glob("part-*.parquet"), reverse=True):
            try:
                if kept >= self._most_rows:
                    path.unlink(missing_ok=True)
                else:
                    kept += parquet.read_metadata(path).num_rows
            except (OSError, pa.ArrowException):
                continue


def _reader(bundle: Path) -> tuple[ClassCaptions, list[str]] | None:
    """A bundle's image-text model and its class names; one that is absent or broken costs the score, no row."""
    from mlx_tasks.registry.class_captions import read_class_captions
    from mlx_tasks.registry.reference import CAPTIONS, FOLDER

    try:
        captions = read_class_captions(bundle / FOLDER / CAPTIONS)
        return None if captions is None else (captions, read_json(bundle / "sampler.json")["class_names"])
    except (DataError, OSError, ValueError, KeyError) as error:
        logger.warning("no image-text scores of %s: %s", bundle.name, error)
        return None


def _empty() -> dict[str, Any]:
    return {name: None for name in (*SCALARS, IMAGE_TEXT, "class", "seed", "thumbnail", "features")}


def read_window(folder: Path, most: int = 20_000, since: float = -math.inf) -> pd.DataFrame:
    """The newest `most` rows made after `since` (Unix time), oldest first; parts that cannot be read are left out.

    Raises: DataError where there is no such folder.
    """
    import pandas as pd
    import pyarrow as pa

    if not folder.is_dir():
        raise DataError(f"no window at {folder}: `mlx-tasks serve --window FOLDER` fills it")
    frames: list[pd.DataFrame] = []
    rows = 0
    for path in sorted(folder.glob("part-*.parquet"), reverse=True):
        try:
            frame = pd.read_parquet(path)
        except FileNotFoundError:
            continue  # it went to make room, between the listing and the reading
        except (OSError, pa.ArrowException) as error:
            logger.warning("window part=%s left out: %s", path.name, error)
            continue
        newer = frame.loc[frame["at"] > since]
        frames.append(newer)
        rows += len(newer)
        if rows >= most or len(newer) == 0:
            break
    if not frames:
        return pd.DataFrame(columns=[*_columns()])
    return pd.concat(frames[::-1], ignore_index=True).sort_values("at", kind="stable").tail(most).reset_index(drop=True)


def features_of(rows: pd.DataFrame) -> np.ndarray:
    """(N, D) float64 features of rows that all have them."""
    return np.stack(rows["features"].to_list()).astype(np.float64) if len(rows) else np.zeros((0, 0))


def _columns() -> Iterable[str]:
    common = ("at", "status", "model", "version", "digest", "nfe", "plan", "waited_ms", "drawn_ms")
    return (*common, *_empty())
