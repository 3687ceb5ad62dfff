"""What a slot of the evaluation leaves, and all slots' together: rows without latencies, pictures, how they were made.

work/scores_parts/SLOT/part.json   {slot, slots, inputs, setup, hardware, seconds, left_out, rows}; inputs and setup are
                                   null where the slot had nothing to do
work/scores_parts/SLOT/NAME.png    the picture of each row
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, read_json, write_json
from mlx_tasks.metrics.bench import Row
from mlx_tasks.metrics.candidates import Candidate

FOLDER = "scores_parts"


@dataclass(frozen=True)
class Parts:
    """All slots' rows.

    Attributes:
        folder: where the parts lie.
        setup: what the scores were measured with, the same in every part.
        rows: name -> (the slot that made it, the row).
        made: slot, rows, seconds and hardware of each part, in the slots' order.
        left_out: name -> why a slot did not score it.
    """

    folder: Path
    setup: dict[str, Any]
    rows: dict[str, tuple[int, Row]]
    made: list[dict[str, Any]]
    left_out: dict[str, str]

    def in_order(self, names: Sequence[str]) -> list[Row]:
        """The rows by these names.  Raises: DataError unless there are these and no others."""
        if missing := [name for name in names if name not in self.rows]:
            raise DataError(f"no slot scored {', '.join(missing)}: run `mlx-tasks score_share` for every slot again")
        if more := sorted(set(self.rows) - set(names)):
            raise DataError(f"{', '.join(more)}: scored, and no candidate any more: run `mlx-tasks score_share` again")
        return [self.rows[name][1] for name in names]

    def picture(self, name: str) -> bytes:
        """A row's PNG."""
        return (self.folder / str(self.rows[name][0]) / f"{name}.png").read_bytes()


def write_part(
    work: Path,
    slot: int,
    slots: int,
    made: Iterable[tuple[Row, bytes]],
    facts: dict[str, Any],
) -> None:
    """Write a slot's part, whole or not at all.

    made: each row with its picture; facts: inputs, setup, hardware, seconds and left_out.
    """
    with atomic_folder(work / FOLDER / str(slot)) as fresh:
        rows = []
        for row, picture in made:
            atomic_write_bytes(fresh / f"{row['candidate']}.png", picture)
            rows.append(row)
        write_json(fresh / "part.json", {"slot": slot, "slots": slots, **facts, "rows": rows})


def read_parts(work: Path, slots: Sequence[int]) -> Parts:
    """The parts of all slots.

    Raises: DataError naming the slots that have none, or one that was made for other slots or from other inputs.
    """
    folder = work / FOLDER
    if missing := [slot for slot in slots if not (folder / str(slot) / "part.json").is_file()]:
        raise DataError(f"slots {missing} have scored nothing: run `mlx-tasks score_share --slot {missing[0]}`")
    parts = [read_json(folder / str(slot) / "part.json") for slot in slots]
    for part in parts:
        if part["slots"] != len(slots):
            raise DataError(
                f"slot {part['slot']} was scored as one of {part['slots']}, the params now have {len(slots)}: "
                f"run `mlx-tasks score_share --slot {part['slot']}` again"
            )
    full = [part for part in parts if part["rows"]]
    if not full:
        raise DataError("no slot has a row: run `mlx-tasks score_share` for every slot again")
    for part in full[1:]:
        if part["inputs"] != full[0]["inputs"]:
            raise DataError(
                f"slots {full[0]['slot']} and {part['slot']} were scored from other bundles, params or code: run "
                "`mlx-tasks score_share` for every slot again"
            )
    rows: dict[str, tuple[int, Row]] = {}
    for part in full:
        for row in part["rows"]:
            if row["candidate"] in rows:
                raise DataError(
                    f"slots {rows[row['candidate']][0]} and {part['slot']} both scored {row['candidate']}: "
                    "run `mlx-tasks score_share` for every slot again"
                )
            rows[row["candidate"]] = (part["slot"], row)
    made = [{key: part[key] for key in ("slot", "seconds", "hardware")} | {"rows": len(part["rows"])} for part in parts]
    left_out = {name: why for part in parts for name, why in (part.get("left_out") or {}).items()}
    return Parts(folder, full[0]["setup"], rows, made, left_out)


def check_candidate(candidate: Candidate, row: Row, bundle_digest: str) -> None:
    """Raises: DataError where the row is of another bundle or of other steps than the candidate has now."""
    learned = candidate.learned.to_dict() if candidate.learned else None
    now = (bundle_digest, list(candidate.timesteps), learned)
    if (row["bundle_digest"], row["timesteps"], row["learned"]) != now:
        raise DataError(
            f"{candidate.name} changed since it was scored: run `mlx-tasks score_share` for every slot again"
        )
