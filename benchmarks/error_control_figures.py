"""What steps_per_image.json says of steps that each image chooses, in words that two pages use."""

from __future__ import annotations

import json
from statistics import mean

from claim import RESULTS
from schedule_tables import listed, span

_ROWS = json.loads((RESULTS / "steps_per_image.json").read_text(encoding="utf-8"))["rows"]
_TOLERANCES = (0.05, 0.03, 0.02, 0.01)


def _of(tolerance: float, key: str) -> list[float]:
    return [told[key] for row in _ROWS for told in row["error_controlled"] if told["tolerance"] == tolerance]


EVALUATIONS = [mean(_of(tolerance, "mean_nfe")) for tolerance in _TOLERANCES]
ERRORS = [mean(_of(tolerance, "error")) for tolerance in _TOLERANCES]
EVALUATIONS_AND_ERRORS = f"{listed(EVALUATIONS, 1, ' and ')} evaluations for errors of {listed(ERRORS, 3, ' and ')}"
OVER_SEARCHED = span([-100 * saved for tolerance in _TOLERANCES for saved in _of(tolerance, "saved")], 0) + " %"
ORACLE_SAVED = sorted(100 * told["saved"] for row in _ROWS for told in row["oracle_learned"])
ORACLE = span(ORACLE_SAVED, 1) + " % of the evaluations"
LOG_SPREADS = [spread for row in _ROWS for spread in row["log_spread"].values()]
OWN_SPREADS = [told["spread_nfe"] for row in _ROWS for told in row["error_controlled"]]
