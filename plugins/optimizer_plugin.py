"""What Airflow gains: the run view on a run's page. The operators (stage_operator.py) are imported by the DAG files."""

from __future__ import annotations

import sys
from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from run_view import PREFIX, create_app

# Plugins are loaded by every component; only the API server serves.
SERVES = sys.argv[1:2] == ["api-server"]


class OptimizerPlugin(AirflowPlugin):
    """The run view."""

    name = "optimizer"
    fastapi_apps: ClassVar = [{"app": create_app(), "url_prefix": PREFIX, "name": "Optimizer runs"}] if SERVES else []
    external_views: ClassVar = [
        {
            "name": "Report",
            "href": PREFIX + "/runs/{RUN_ID}/report",
            "destination": "dag_run",
            "url_route": "optimizer_report",
        }
    ]
