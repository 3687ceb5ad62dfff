"""validate: a dataset looked at image by image, split, checked, put into arrays; the refused are shown with why."""

from __future__ import annotations

import logging
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.data.arrays import ArrayRows, SquareStore
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.expectations import Checked, check_manifest
from mlx_tasks.data.inspection import inspect_all
from mlx_tasks.data.manifest import accepted_rows, build_manifest, class_names, present_labels, refuse_contradicted
from mlx_tasks.data.preview import sample_grid
from mlx_tasks.data.quarantine import Refused, refused_of, summarise, write_quarantine
from mlx_tasks.data.records import Records
from mlx_tasks.data.sources import Source, read_source
from mlx_tasks.data.summary import build_summary
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, write_json
from mlx_tasks.stages.context import StageContext

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SUITE = "include/expectations/manifest.json"
_OUTS = ("dataset", "quarantine", "data_docs")


@dataclass(frozen=True)
class _Looked:
    """What one pass over the source left: measurements without pixels, and who is refused."""

    source: Source
    records: Records
    refused: list[Refused]


def run(context: StageContext) -> None:
    """Write work/dataset, work/quarantine, work/data_docs and work/metrics/validate.json.

    They appear together at the end or not at all. Where the dataset is refused, what a person needs in order to see why
    goes to .run/quarantine and .run/data_docs instead, which neither DVC nor a later stage looks at.
    Raises: DataError where the dataset breaks a rule (docs/data.md lists them).
    """
    data = context.config.data
    resolutions = context.config.train.resolutions
    rules = Rules(data.min_side, data.max_pixels, data.max_aspect_ratio)
    _clear(context)
    source = read_source(context.root, data.path, context.config.seed, data.max_uncaptioned)
    logger.info("event=source name=%s images=%d", source.name, len(source.candidates))
    for line in source.told.lines():
        context.progress.say(line)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_run_folder(context), prefix="validate-")))
        width = 1 if data.channels == "grey" else 3
        store = stack.enter_context(SquareStore(scratch, len(source.candidates), resolutions, width))
        looked = _look(context, source, rules, store)
        try:
            names = _accept(context, looked)
            fractions = {"test": data.test_fraction, "validation": data.validation_fraction}
            frame, assignment, order = build_manifest(
                source, looked.records, data.duplicate_distance, fractions, context.config.seed
            )
        except DataError as error:
            _show_refused(context, looked, rules, error)
            raise
        dataset, quarantine, docs = (stack.enter_context(atomic_folder(context.work / out)) for out in _OUTS)
        channels = _channels(data.channels, looked.records)
        store.write(dataset / "images", order, channels)
        frame.to_parquet(dataset / "manifest.parquet", index=False)
        write_json(dataset / "classes.json", names)
        checks = _check(context, frame, names, docs)
        images = ArrayRows(dataset / "images" / f"{resolutions[-1]}.npy")
        summary = build_summary(source, frame, names, channels, context.config, assignment.moved, checks, images)
        write_json(dataset / "summary.json", summary)
        write_quarantine(quarantine, looked.refused, len(source.candidates), rules, source.told)
        grid = sample_grid(images, frame, names)
    metrics = _metrics(summary, checks)
    write_json(context.work / "metrics" / "validate.json", metrics)
    _record(context, summary, metrics, grid)


def _look(context: StageContext, source: Source, rules: Rules, store: SquareStore) -> _Looked:
    """Every candidate inspected once; its squares go to the store and only the measurements stay in memory."""
    total = len(source.candidates)
    records = Records(total)
    channels, resolutions = context.config.data.channels, context.config.train.resolutions
    for row, seen in enumerate(inspect_all(source.candidates, rules, resolutions, channels, context.hardware.threads)):
        store.put(row, seen.squares)
        records.append(seen)
        context.progress.update(row + 1, total, "images", phase="decode")
    refuse_contradicted(source.candidates, records)
    return _Looked(source, records, refused_of(source.candidates, records))


def _accept(context: StageContext, looked: _Looked) -> list[str]:
    """The class names of a dataset that is good enough to go on with.  Raises: DataError."""
    data, total = context.config.data, len(looked.source.candidates)
    fraction = len(looked.refused) / total
    if fraction > data.max_quarantined:
        raise DataError(
            f"{fraction:.1%} of the images are refused, above data.max_quarantined {data.max_quarantined:.1%}.\n"
            f"{summarise(looked.refused, total)}"
        )
    accepted = total - len(looked.refused)
    if accepted < data.min_images:
        raise DataError(
            f"the dataset has {accepted} usable image{'s' * (accepted != 1)} of {total}, fewer than data.min_images "
            f"{data.min_images}: add images, or lower it"
        )
    names = class_names(looked.source, present_labels(looked.source.candidates, looked.records.accepted()))
    if len(names) == 1:
        raise DataError(
            f"all {accepted} images are of one class, {names[0]!r}: a class-conditional model needs two. Add a class, "
            "or put the images straight into the folder, without class folders and without a column of labels, for a "
            "model without classes"
        )
    return names


def _channels(asked: str, records: Records) -> int:
    """1 or 3: as asked, or grey where every accepted image is."""
    if asked == "auto":
        return 1 if records.grey[records.accepted()].all() else 3
    return 1 if asked == "grey" else 3


def _check(context: StageContext, frame: pd.DataFrame, names: list[str], docs: Path) -> list[Checked]:
    """The suite's outcomes, all of which hold.  Raises: DataError naming those that do not."""
    data = context.config.data
    accepted = accepted_rows(frame)
    parameters = {
        "min_images": data.min_images,
        "last_index": len(accepted) - 1,
        "min_side": data.min_side,
        "max_pixels": data.max_pixels,
        "max_aspect_ratio": data.max_aspect_ratio,
        "labelled": 1.0 if names else 0.0,
        "first_class": 0 if names else -1,
        "last_class": len(names) - 1,
        "class_count": max(1, len(names)),
    }
    context.progress.say(f"checking {len(accepted)} rows against {SUITE}")
    checks = check_manifest(accepted, context.root / SUITE, parameters, docs)
    failed = [check for check in checks if not check.success]
    if failed:
        kept = _run_folder(context) / "data_docs"
        with atomic_folder(kept) as folder:
            shutil.copytree(docs, folder, dirs_exist_ok=True)
        lines = "\n".join(f"  {check.name}: observed {check.observed}. {check.note}" for check in failed)
        raise DataError(f"{len(failed)} of {len(checks)} expectations of {SUITE} fail (pages: {kept}):\n{lines}")
    return checks


def _show_refused(context: StageContext, looked: _Looked, rules: Rules, error: DataError) -> None:
    """Keep the quarantine of a refused dataset where nobody removes it, and say where."""
    kept = _run_folder(context) / "quarantine"
    with atomic_folder(kept) as folder:
        write_quarantine(folder, looked.refused, len(looked.source.candidates), rules, looked.source.told)
    if looked.refused:
        error.args = (f"{error}\nThe refused images: {kept / 'index.html'}",)


def _metrics(summary: dict[str, Any], checks: list[Checked]) -> dict[str, Any]:
    """The stage's figures, flat where they are numbers."""
    return {
        "images": summary["images"],
        "accepted": summary["accepted"],
        "refused": summary["refused"],
        "refused_fraction": summary["refused"] / summary["images"],
        "reasons": summary["reasons"],
        **{f"{split}_images": count for split, count in summary["splits"].items()},
        "classes": len(summary["classes"]),
        "near_duplicate_images": summary["near_duplicates"]["images"],
        "near_duplicates_moved": summary["near_duplicates"]["moved"],
        "brightness_mean": summary["brightness"]["mean"],
        "sharpness_median": summary["sharpness"]["median"],
        "expectations": len(checks),
        "expectations_failed": sum(not check.success for check in checks),
    }


def _record(context: StageContext, summary: dict[str, Any], metrics: dict[str, Any], grid: np.ndarray) -> None:
    tracker = context.tracker
    numbers = {f"validate/{name}": float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    tracker.metrics(numbers, step=0)
    tracker.tags({"dataset": summary["name"], "dataset_fingerprint": summary["fingerprint"]})
    tracker.image("validate/samples", grid, step=0)
    tracker.artifact(context.work / "dataset" / "summary.json", "validate")
    tracker.artifact(context.work / "data_docs", "validate")
    tracker.artifact(context.work / "quarantine", "validate")
    splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
    context.progress.say(f"{summary['accepted']} images accepted ({splits}), {summary['refused']} refused")
    if summary["refused"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["reasons"].items())
        context.progress.say(f"refused: {reasons}. Look at work/quarantine/index.html")


def _run_folder(context: StageContext) -> Path:
    folder = context.root / ".run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _clear(context: StageContext) -> None:
    """Remove what a killed or refused run of this stage left behind."""
    leftovers = [_run_folder(context) / name for name in ("quarantine", "data_docs")]
    leftovers += list(_run_folder(context).glob("validate-*"))
    leftovers += [path for out in _OUTS for path in context.work.glob(f".{out}.*")]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
