"""What of its surroundings a stage's process is given: all but secrets that it has no use for. Light."""

from __future__ import annotations

import re
from collections.abc import Mapping

KEEP_VARIABLE = "ADO_STAGE_ENVIRONMENT"
"""Names, with commas between, of variables that a stage is given all the same."""

_OTHERS = re.compile(r"_?AIRFLOW_|ADO_(ALERT|JWT|API|SERVER)_|MLX_TASKS_SERVER_KEY")
"""The control plane's and the server's own."""
_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|_(KEYS?|PWD)$|(^|_)(TOKENS?|PASS|DSN|CONN|DATABASE_URL)($|_)",
    re.IGNORECASE,
)
_WANTED = re.compile(
    r"AWS_|MLFLOW_(TRACKING|S3|HTTP|EXPERIMENT)_|DVC_|HF_|HUGGING_?FACE_|GIT_|SSH_|MLX_|GOOGLE_|AZURE_"
)
"""What reads the store, MLflow, git and models proves itself by."""
_NOT_SECRET = frozenset({"ADO_SERVER_URL"})


def for_stages(surroundings: Mapping[str, str]) -> dict[str, str]:
    """The variables that a stage is given: no secret but those of the store, MLflow, git and the hubs of models."""
    asked = {name.strip() for name in surroundings.get(KEEP_VARIABLE, "").split(",")}
    return {name: value for name, value in surroundings.items() if name in asked or _may_have(name)}


def _may_have(name: str) -> bool:
    if name in _NOT_SECRET:
        return True
    if _OTHERS.match(name):
        return False
    return bool(_WANTED.match(name)) or not _SECRET.search(name)
