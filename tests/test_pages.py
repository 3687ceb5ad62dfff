"""A page of an answer is not all of it: MLflow's searches are read to their end."""

import json

from mlx_tasks.comparison.records import mlflow_record
from mlx_tasks.tracking.rest import MlflowRest

pytest_plugins = ["mlflow_server"]

MORE_THAN_A_PAGE = 102


def test_every_page_of_a_search_is_read(tracked):
    rest = MlflowRest(tracked.uri)
    experiment = rest.experiment("many runs")
    made = {rest.create_run(experiment, f"run {number}", {}) for number in range(12)}
    found = list(rest.rows("POST", "runs/search", "runs", {"experiment_ids": [experiment], "max_results": 5}))
    assert {run["info"]["run_id"] for run in found} == made and len(found) == 12
    assert (
        list(rest.rows("POST", "runs/search", "runs", {"experiment_ids": [experiment], "filter": "tags.no = 'x'"}))
        == []
    )


def test_scores_of_a_sibling_behind_the_first_page_are_found(tracked, tmp_path):
    """The oldest of more than a hundred siblings is the one that logged scores."""
    rest = MlflowRest(tracked.uri)
    experiment = rest.experiment("siblings")
    parent = rest.create_run(experiment, "parent", {})
    tags = {"mlflow.parentRunId": parent}
    first = rest.create_run(experiment, "evaluate", tags, start_ms=1)
    scores = tmp_path / "scores.json"
    row = {"candidate": "a", "kind": "learned", "metrics": {"frechet_distance": {"value": 1.0}}, "refused": None}
    winner = {"candidate": "a", "rule": "the best"}
    row |= {"latency_ms": 1.0, "nfe": 4}
    scores.write_text(json.dumps({"rows": [row], "winner": winner, "setup": {"classes": []}}))
    rest.put_artifact(rest.run(first)["info"]["artifact_uri"], "scores/scores.json", scores)
    for number in range(MORE_THAN_A_PAGE):
        rest.create_run(experiment, f"trial {number}", tags, start_ms=10 + number)
    assert first in mlflow_record("all", parent, tracked.uri).source
