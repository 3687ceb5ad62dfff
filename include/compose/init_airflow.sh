#!/usr/bin/env bash
# Run once by the service airflow-init; safe to run again.
set -euo pipefail
umask 077
python - <<'PYTHON'
import json
import os
from pathlib import Path

path = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
path.write_text(json.dumps({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}))
PYTHON
airflow db migrate
airflow pools set mlx 64 "each worker takes one stage at a time; so many workers compute at once, at most"
