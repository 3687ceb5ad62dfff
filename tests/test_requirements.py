"""docs/requirements.md tells the truth where a machine can tell: what it names exists, and nothing done is unproven."""

import re
from pathlib import Path

import pytest

from mlx_tasks import cli

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| Requirement")
]
(COMMANDS,) = (action.choices for action in cli._parser()._actions if action.metavar == "COMMAND")


def named(cell: str) -> list[str]:
    """What a cell names in code type."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_names_what_exists(row):
    assert len(row) == 4 and row[1] in ("D", "P", "N"), row
    for name in named(row[2]) + named(row[3]):
        if name.startswith("mlx-tasks "):
            assert name.split()[1] in COMMANDS, name
        elif "/" in name or name.endswith((".yaml", ".py")):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("row", [row for row in ROWS if row[1] == "D"], ids=lambda row: row[0][:60])
def test_what_is_done_names_its_proof(row):
    assert any(name.startswith(("tests/test_", "benchmarks/", "mlx-tasks ")) for name in named(row[3])), row


@pytest.mark.parametrize("row", [row for row in ROWS if row[1] == "P"], ids=lambda row: row[0][:60])
def test_what_is_partly_done_says_what_is_missing(row):
    words = re.sub(r"`[^`]+`", "", row[3]).replace(",", " ").split()
    assert len(words) >= 2 or named(row[3])[0].startswith("benchmarks/"), row
