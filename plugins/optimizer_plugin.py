"""What Airflow gains: the run view on a run's page, and the way in for outside alerts.

The operators (stage_operator.py) are imported by the DAG files.
"""

from __future__ import annotations

import sys
from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

import alert_receiver
import run_view

# Plugins are loaded by every component; only the API server serves.
SERVES = sys.argv[1:2] == ["api-server"]


class OptimizerPlugin(AirflowPlugin):
    """The run view and the alert receiver."""

    name = "optimizer"
    fastapi_apps: ClassVar = (
        [
            {"app": run_view.create_app(), "url_prefix": run_view.PREFIX, "name": "Optimizer runs"},
            {"app": alert_receiver.create_app(), "url_prefix": alert_receiver.PREFIX, "name": "Alerts"},
        ]
        if SERVES
        else []
    )
    external_views: ClassVar = [
        {
            "name": "Report",
            "href": run_view.PREFIX + "/runs/{RUN_ID}/report",
            "destination": "dag_run",
            "url_route": "optimizer_report",
        }
    ]
