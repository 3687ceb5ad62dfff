"""Great Expectations: the suite of include/expectations run on the manifest, its Data Docs, and a plain result."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.data.data_docs import make_offline
from mlx_tasks.files import read_json

if TYPE_CHECKING:
    import pandas as pd

_EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Checked:
    """One expectation's outcome.

    Attributes:
        name: type and column, for example `expect_column_values_to_be_unique(path)`.
        success: whether it holds.
        observed: the observed value, or the unexpected values' count and a few of them, as text.
        note: what the suite says that it is for.
    """

    name: str
    success: bool
    observed: str
    note: str


def with_derived(accepted: pd.DataFrame) -> pd.DataFrame:
    """The manifest's accepted rows with the columns that the suite needs beyond them.

    shorter_side, pixels, aspect_ratio; splits_of_group and splits_of_pixels: in how many splits the near-duplicate
    group, and the exact pixels, occur; class_in_train: 1 where the row's class has an image in train.
    """
    sides = accepted[["width", "height"]]
    classes = accepted["class_index"].to_numpy()
    learned = np.unique(classes[accepted["split"].to_numpy() == "train"])
    return accepted.assign(
        shorter_side=sides.min(axis=1),
        pixels=sides.prod(axis=1),
        aspect_ratio=sides.max(axis=1) / sides.min(axis=1),
        splits_of_group=accepted.groupby("duplicate_group")["split"].transform("nunique"),
        splits_of_pixels=accepted.groupby("pixels_sha256")["split"].transform("nunique"),
        class_in_train=np.isin(classes, learned).astype(np.int64),
    )


def check_manifest(
    accepted: pd.DataFrame, suite_file: Path, parameters: dict[str, Any], docs_folder: Path
) -> list[Checked]:
    """Run the suite on the accepted rows and write Data Docs into `docs_folder`.

    The data context is a file one in a temporary folder that goes away; only its HTML is kept. Its run is dated
    2000-01-01, so that the pages of equal data are named and dated equally.
    parameters: values for the suite's `$PARAMETER`s.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import: Great Expectations phones home by default
    import great_expectations as gx
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    with tempfile.TemporaryDirectory(prefix="mlx-tasks-gx-") as temporary:
        context = gx.get_context(mode="file", project_root_dir=temporary)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        batches = context.data_sources.add_pandas("manifest").add_dataframe_asset("accepted")
        described = read_json(suite_file)
        suite = context.suites.add(
            gx.ExpectationSuite(described["name"], described["expectations"], meta=described["meta"])
        )
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(
                name="manifest", data=batches.add_batch_definition_whole_dataframe("all"), suite=suite
            )
        )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name="manifest",
                validation_definitions=[definition],
                actions=[UpdateDataDocsAction(name="docs")],
                result_format="SUMMARY",
            )
        )
        result = checkpoint.run(
            batch_parameters={"dataframe": with_derived(accepted)},
            expectation_parameters=parameters,
            run_id=RunIdentifier(run_name="validate", run_time=_EPOCH),
        )
        site = Path(temporary, "gx", "uncommitted", "data_docs", "local_site")
        shutil.copytree(site, docs_folder, dirs_exist_ok=True)
        make_offline(docs_folder)
        return [_checked(outcome) for run in result.run_results.values() for outcome in run.results]


def _checked(outcome: Any) -> Checked:
    config = outcome.expectation_config
    column = config.kwargs.get("column")
    name = f"{config.type}({column})" if column else config.type
    return Checked(name, bool(outcome.success), _observed(outcome), (config.meta or {}).get("notes", ""))


def _observed(outcome: Any) -> str:
    raised = [info for info in _flat(outcome.exception_info) if info.get("raised_exception")]
    if raised:
        return f"could not be computed: {raised[0].get('exception_message')}"
    result = outcome.result
    if "observed_value" in result:
        return str(result["observed_value"])
    if "unexpected_count" in result:
        few = ", ".join(repr(value) for value in result.get("partial_unexpected_list", [])[:3])
        return f"{result['unexpected_count']} of {result['element_count']} unexpected" + (f" ({few})" if few else "")
    return str(result)


def _flat(info: Any) -> Iterable[dict[str, Any]]:
    """Exception records, which are one dict, or a dict of them by metric."""
    if not info:
        return []
    return [info] if "raised_exception" in info else [value for value in info.values() if isinstance(value, dict)]
