"""What reads files of others, each with sound examples and the only ways in which it may end.

A target is a function of (folder, rng): it writes a damaged input, reads it, and raises for anything that is not
promised. The name of the input's file is what a finding tells.
"""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fuzzing.mutate import damaged_bytes, damaged_json
from mlx_tasks.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
TARGETS: dict[str, Callable[[Path, random.Random], None]] = {}


def target(function: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
    TARGETS[function.__name__] = function
    return function


def run(case: tuple[str, int], keep: str = "") -> str:
    """What one case (target, seed) found; nothing where all is as promised.  keep: where its input is left."""
    name, seed = case
    folder = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        TARGETS[name](folder, random.Random(f"{name} {seed}"))
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
        return f"{type(error).__name__} at {where}: {str(error)[:300]}"
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return ""


@functools.cache
def pictures() -> dict[str, list[bytes]]:
    """Sound files of each format and of several kinds in each."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    frames = [Image.fromarray(pixels) for pixels in noise]
    grey, deep = frames[0].convert("L"), Image.fromarray(noise[0, ..., 0].astype(np.uint16) * 257)
    clear, palette = frames[0].copy(), frames[0].quantize(16)
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    made: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(frames[0], {"exif": exif}), (clear, {}), (palette, {}), (deep, {}), (frames[0], more)],
        "JPEG": [(frames[0], {"exif": exif}), (grey, {"progressive": True}), (frames[0].convert("CMYK"), {})],
        "MPO": [(frames[0], more)],
        "GIF": [(frames[0], more), (palette, {})],
        "WEBP": [(frames[0], {"exif": exif}), (clear, {"lossless": True}), (frames[0], more)],
        "BMP": [(frames[0], {}), (palette, {}), (frames[0].convert("1"), {})],
        "TIFF": [(frames[0], {"compression": how}) for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
        + [(deep, {}), (frames[0], more)],
        "PPM": [(frames[0], {}), (grey, {}), (deep, {})],
        "AVIF": [(frames[0], {"exif": exif}), (clear, {}), (frames[0], more)],
        "JPEG2000": [(frames[0], {}), (grey, {"no_jp2": True}), (clear, {"tile_size": (8, 8)})],
    }
    return {kind: [_encoded(picture, kind, options) for picture, options in each] for kind, each in made.items()}


def _encoded(picture: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # Pillow leaves notes for one format on them
        options = {**options, "append_images": [frame.copy() for frame in options["append_images"]]}
    picture.copy().save(buffer, kind, **options)
    return buffer.getvalue()


@target
def image(folder: Path, rng: random.Random) -> None:
    """A picture is decoded whole, or refused with a reason; and what is done with a picture is done."""
    from mlx_tasks.data.decode import Rules
    from mlx_tasks.data.inspection import inspect_one
    from mlx_tasks.data.listing import Candidate
    from mlx_tasks.data.reasons import REASONS

    kind = rng.choice(list(pictures()))
    data = damaged_bytes(rng.choice(pictures()[kind]), rng.choice(pictures()[rng.choice(list(pictures()))]), rng)
    path = folder / f"picture.{kind.lower()}"
    path.write_bytes(data)
    seen = inspect_one(Candidate(path.name, path), Rules(8, 4_000_000, 3.0), (8,), "auto")
    assert seen.reason in REASONS or (not seen.reason and seen.squares[8].shape[:2] == (8, 8)), seen.reason


ROWS = [
    {"file_name": "0.png", "label": "cat", "text": "a cat asleep"},
    {"file_name": "1.png", "label": 7, "text": ["two", "captions"]},
    {"file_name": "2.png", "label": "dog", "text": "ein Hund, 犬"},
]


@target
def metadata(folder: Path, rng: random.Random) -> None:
    """A table beside pictures is read, or refused by DataError; the listing holds text that can be written."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    name = rng.choice(("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.json", "table.tsv"))
    if name.endswith("jsonl"):
        lines = [damaged_json(row, rng) if rng.random() < 0.5 else json.dumps(row).encode() for row in ROWS]
        data = b"\n".join(lines)
    elif name.endswith("json"):
        data = damaged_json(ROWS, rng)
    elif name.endswith("parquet"):
        buffer = io.BytesIO()
        texts = [{key: str(value) for key, value in row.items()} for row in ROWS]
        parquet.write_table(pa.Table.from_pylist(texts), buffer)
        data = damaged_bytes(buffer.getvalue(), b"", rng)
    else:
        mark = "\t" if name.endswith("tsv") else ","
        rows = ["file_name,label,text", "0.png,cat,a cat", '1.png,dog,"a ""dog"", asleep"', "2.png,cat,"]
        data = damaged_bytes("\r\n".join(rows).replace(",", mark).encode(), b'",\n\x00\xff\xfe\r', rng)
    (folder / name).write_bytes(data)
    _listed(folder)


@target
def caption_file(folder: Path, rng: random.Random) -> None:
    """A caption beside a picture is text, or passed over."""
    data = damaged_bytes("a cat, 猫, asleep\nanother".encode(rng.choice(("utf-8", "utf-16"))), b"\x00\xff\xfe\r\n", rng)
    (folder / "1.txt").write_bytes(data)
    _listed(folder)


def _listed(folder: Path) -> None:
    from mlx_tasks.data.imagefolder import read_folder

    for number in range(3):
        (folder / f"{number}.png").write_bytes(pictures()["PNG"][0])
    try:
        listing = read_folder(folder, 0).candidates
    except DataError:
        return
    for candidate in listing:
        f"{candidate.path} {candidate.label} {candidate.caption} {candidate.problem}".encode()


@target
def card(folder: Path, rng: random.Random) -> None:
    """A dataset card is read, or refused by DataError."""
    from mlx_tasks.data.sources import read_card

    whole = (ROOT / "include" / "datasets" / "digits.yaml").read_text(encoding="utf-8")
    (folder / "card.yaml").write_bytes(_damaged_yaml(whole, rng))
    try:
        read_card(folder / "card.yaml", 0)
    except DataError:
        return


@target
def params(folder: Path, rng: random.Random) -> None:
    """params.yaml is a tree within its bounds, or refused by DataError."""
    from mlx_tasks.params import load_config, parse_override

    (folder / "params.yaml").write_bytes(_damaged_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"), rng))
    try:
        load_config(folder)
    except DataError:
        pass
    text = rng.choice(("train.steps=800", "train.resolutions=[8, 16]", "data.path=/a b", "train.ema=0.9")).encode()
    try:
        parse_override(damaged_bytes(text, b"&a [*a]: {!!python ''}", rng).decode("utf-8", "surrogateescape"))
    except DataError:
        return


def _damaged_yaml(text: str, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged_json(yaml.safe_load(text), rng)  # JSON is YAML
    return damaged_bytes(text.encode(), b"&a *a [{<<: !!int - ? : > | ' \" \t 1_0: 0x 1e9 ~", rng)


@target
def scheduler(folder: Path, rng: random.Random) -> None:
    """A scheduler_config.json of any class gives a run of numbers, or is refused by DataError."""
    from mlx_tasks.models.json_file import read_mapping
    from mlx_tasks.samplers.following import CLASSES, plan_from_config

    name = rng.choice(list(CLASSES))
    whole = {"_class_name": name, **{key: value for key, value in CLASSES[name].defaults.items() if value is not None}}
    path = folder / "scheduler_config.json"
    path.write_bytes(damaged_json(whole, rng))
    try:
        plan = plan_from_config(read_mapping(path, infinite=True), 8)
    except DataError:
        return
    assert np.isfinite([*plan.sigmas, *plan.timesteps]).all(), (plan.sigmas, plan.timesteps)


@functools.cache
def _bundle_files() -> dict[str, bytes]:
    from registry_workspace import write_small_bundle

    with tempfile.TemporaryDirectory() as name:
        write_small_bundle(Path(name, "bundle"))
        root = Path(name, "bundle")
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@target
def bundle(folder: Path, rng: random.Random) -> None:
    """A bundle with one damaged file is refused by DataError, or was not damaged where it matters.

    Half of the time its digests are made anew, as a hostile sender would.
    """
    from mlx_tasks.models.bundle import read_bundle
    from mlx_tasks.models.digests import write_digests

    files = _bundle_files()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    name = rng.choice(list(files))
    data = files[name]
    if name.endswith(".json") and rng.random() < 0.8:
        data = damaged_json(json.loads(data), rng)
    elif name.endswith(".safetensors") and rng.random() < 0.7:
        length = int.from_bytes(data[:8], "little")
        header = damaged_json(json.loads(data[8 : 8 + length]), rng)
        data = len(header).to_bytes(8, "little") + header + data[8 + length :]
    else:
        data = damaged_bytes(data, b"", rng)
    (folder / name).write_bytes(data)
    try:
        if rng.random() < 0.7:
            write_digests(folder)
        read_bundle(folder)
    except DataError:
        return
