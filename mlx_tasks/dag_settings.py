"""What the three DAGs' tasks have in common: retries, time, pool and queue, as the environment sets them. Light."""

from __future__ import annotations

import os
from datetime import timedelta

from mlx_tasks.time_limits import task_timeout

RETRIES = {
    "retries": int(os.environ.get("ADO_RETRIES", "2")),
    "retry_delay": timedelta(seconds=float(os.environ.get("ADO_RETRY_DELAY_S", "30"))),
    "execution_timeout": task_timeout(),
}
ACCELERATOR = {"pool": os.environ.get("ADO_POOL", "mlx"), "queue": os.environ.get("ADO_QUEUE", "default")}
"""One slot: the accelerator takes one stage at a time. The queue is an Edge worker's, where one is configured."""
