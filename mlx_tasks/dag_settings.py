"""What the three DAGs' tasks have in common: retries, pool and queue, as the environment sets them. Light."""

from __future__ import annotations

import os
from datetime import timedelta

RETRIES = {
    "retries": int(os.environ.get("ADO_RETRIES", "2")),
    "retry_delay": timedelta(seconds=float(os.environ.get("ADO_RETRY_DELAY_S", "30"))),
}
ACCELERATOR = {"pool": os.environ.get("ADO_POOL", "mlx"), "queue": os.environ.get("ADO_QUEUE", "default")}
"""One slot: the accelerator takes one stage at a time. The queue is an Edge worker's, where one is configured."""
