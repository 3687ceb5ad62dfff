"""The refused images for people: a page with a thumbnail and a reason for each, and the same as JSON."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from mlx_tasks.data.children import Lost, in_children
from mlx_tasks.data.decode import Rules
from mlx_tasks.data.inspection import bounds, decode_candidate
from mlx_tasks.data.listing import Candidate, Listing
from mlx_tasks.data.manifest import count_by
from mlx_tasks.data.reasons import REASONS, Refusal
from mlx_tasks.data.records import Records
from mlx_tasks.data.told import Told, escaped
from mlx_tasks.files import write_json

THUMBNAIL_SIDE = 96
MAX_SHOWN = 1000
"""Images shown on the page, with a thumbnail; quarantine.json lists all."""

_DECODABLE = frozenset({"too_small", "bad_aspect", "missing_label", "bad_label", "missing_caption"})
"""Reasons that leave a picture to show."""


@dataclass(frozen=True)
class Refused:
    """One refused image: where it is, and why."""

    candidate: Candidate
    reason: str
    detail: str
    width: int
    height: int


def refused_of(listing: Listing, records: Records) -> list[Refused]:
    """The refused, in the source's order."""
    return [
        Refused(listing[row], *records.refusals[row], int(records.width[row]), int(records.height[row]))
        for row in sorted(records.refusals)
    ]


def write_quarantine(folder: Path, refused: list[Refused], total: int, rules: Rules, told: Told) -> None:
    """Write index.html, quarantine.json and thumbnails/ into `folder`.

    total: images that the source offered; told: what was found, shown above the refused.  Nothing here opens a picture
    that is a bomb; where none can be decoded the thumbnail is a grey field with the reason on it.
    """
    (folder / "thumbnails").mkdir(parents=True, exist_ok=True)
    entries = []
    thumbnails = _thumbnails(refused[:MAX_SHOWN], rules)
    for number, one in enumerate(refused):
        thumbnail = f"thumbnails/{number:06d}.png" if number < MAX_SHOWN else ""
        if thumbnail:
            next(thumbnails).save(folder / thumbnail)
        entries.append(
            {
                "path": one.candidate.path,
                "reason": one.reason,
                "detail": one.detail,
                "width": one.width,
                "height": one.height,
                "label": one.candidate.label,
                "thumbnail": thumbnail,
            }
        )
    counts = count_by(one.reason for one in refused)
    write_json(
        folder / "quarantine.json", {"images": total, "refused": len(refused), "reasons": counts, "rows": entries}
    )
    (folder / "index.html").write_text(_page(entries, counts, total, told), encoding="utf-8")


def summarise(refused: list[Refused], total: int, shown: int = 3) -> str:
    """Lines of text: how many were refused for each reason, with a few of their paths."""
    lines = [f"{len(refused)} of {total} images were refused:"]
    for reason, count in count_by(one.reason for one in refused).items():
        of_it = [one for one in refused if one.reason == reason]
        paths = [one.candidate.path for one in of_it[:shown]]
        more = ", ..." if count > shown else ""
        first = f"; the first: {escaped(of_it[0].detail)[:200]}" if of_it[0].detail else ""
        lines.append(f"  {count} {reason} ({REASONS[reason]}): {escaped(', '.join(paths))}{more}{first}")
    return "\n".join(lines)


def _thumbnails(refused: list[Refused], rules: Rules) -> Iterator[Image.Image]:
    """A thumbnail of each, in order: the picture where one can be shown, else a grey field with the reason.

    Too small or too long is no reason not to show it. Such a picture was refused by its header, so that its pixels are
    decoded here for the first time, and in a child process.
    """
    lenient = replace(rules, min_side=1, max_aspect_ratio=float(rules.max_pixels))
    shown = [one.candidate for one in refused if one.reason in _DECODABLE]
    pictures = in_children(partial(_thumbnail, rules=lenient), shown, 1, bounds(rules))
    for one in refused:
        picture = next(pictures) if one.reason in _DECODABLE else None
        yield _field(one.reason) if picture is None or isinstance(picture, Lost) else picture


def _field(reason: str) -> Image.Image:
    field = Image.new("L", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), 224)
    ImageDraw.Draw(field).multiline_text((6, 6), reason.replace("_", "\n"), fill=64)
    return field


def _thumbnail(candidate: Candidate, rules: Rules) -> Image.Image | None:
    """The picture at thumbnail size, or None where it cannot be decoded."""
    if candidate.file is None and candidate.pixels is None:
        return None
    try:
        image = decode_candidate(candidate, rules).image
    except Refusal:
        return None
    scale = THUMBNAIL_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)


def _page(entries: list[dict], counts: dict[str, int], total: int, told: Told) -> str:
    found = "".join(f"<li>{html.escape(line)}</li>" for line in told.lines())
    reasons = "".join(
        f"<tr><td>{reason}</td><td>{count}</td><td>{html.escape(REASONS[reason])}</td></tr>"
        for reason, count in counts.items()
    )
    rows = "".join(
        f'<tr><td><img src="{entry["thumbnail"]}" alt=""></td><td class="long">{html.escape(entry["path"])}</td>'
        f'<td>{entry["reason"]}</td><td class="long">{html.escape(entry["detail"])}</td></tr>'
        for entry in entries
        if entry["thumbnail"]
    )
    left_off = f"<p>The first {MAX_SHOWN} are shown; quarantine.json lists all.</p>" if len(entries) > MAX_SHOWN else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Quarantine</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #8884; padding: .4rem .6rem; text-align: left; }}
.long {{ overflow-wrap: anywhere; }}
@media (max-width: 40rem) {{ table {{ display: block; overflow-x: auto; }} }}
img {{ max-width: {THUMBNAIL_SIDE}px; image-rendering: pixelated; }}
</style></head><body>
<h1>Quarantine</h1>
<ul>{found}</ul>
<p>{len(entries)} of {total} images were refused.</p>
<table><thead><tr><th>Reason</th><th>Images</th><th>Meaning</th></tr></thead><tbody>{reasons}</tbody></table>
{left_off}<table><thead><tr><th>Image</th><th>Path</th><th>Reason</th><th>Detail</th></tr></thead>
<tbody>{rows}</tbody></table>
</body></html>
"""
