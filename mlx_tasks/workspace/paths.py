"""Where runs live on this machine, from the environment; and a run id as a name for files and branches."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

STATE_VARIABLE = "ADO_STATE"
REPOSITORY_VARIABLE = "ADO_REPOSITORY"
DVC_REMOTE_VARIABLE = "ADO_DVC_REMOTE"
ENDPOINT_VARIABLE = "ADO_DVC_ENDPOINT"
GIT_REMOTE_VARIABLE = "ADO_GIT_REMOTE"


def run_slug(run_id: str) -> str:
    """A run id as a file and branch name: what can be read of it, and eight hex digits that keep two ids apart.

    Airflow's run ids hold `:` and `+`; a file system may not tell letters' cases apart, so the digits say it all.
    Raises: ValueError for an empty id.
    """
    if not run_id:
        raise ValueError("a run id must not be empty")
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", run_id).strip("-_")[:60].strip("-_") or "run"
    return f"{readable}-{hashlib.sha256(run_id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def workspace_path(state: Path, run_id: str) -> Path:
    """The folder of a run's workspace."""
    return state / "workspaces" / run_slug(run_id)


@dataclass(frozen=True)
class Places:
    """This machine's folders.

    Attributes:
        repository: the checkout whose commits runs are made of (ADO_REPOSITORY, or the current folder).
        state: the folder of all state (ADO_STATE, or `.state` in the checkout).
        dvc_remote: where artifacts travel between machines (ADO_DVC_REMOTE: a folder or any URL DVC knows).
        git_remote: the git remote that runs' branches are pushed to and fetched from (ADO_GIT_REMOTE), or None where
            all tasks run on one machine.
        dvc_endpoint: address of an S3 store that is not Amazon's (ADO_DVC_ENDPOINT), or None.
    """

    repository: Path
    state: Path
    dvc_remote: str
    git_remote: str | None = None
    dvc_endpoint: str | None = None

    @classmethod
    def from_environment(cls) -> Places:
        """This machine's folders as its environment names them."""
        repository = Path(os.environ.get(REPOSITORY_VARIABLE) or Path.cwd()).resolve()
        state = Path(os.environ.get(STATE_VARIABLE) or repository / ".state").resolve()
        remote = os.environ.get(DVC_REMOTE_VARIABLE) or str(state / "dvc-remote")
        git_remote = os.environ.get(GIT_REMOTE_VARIABLE) or None
        return cls(repository, state, remote, git_remote, os.environ.get(ENDPOINT_VARIABLE) or None)

    @property
    def workspaces(self) -> Path:
        """Folder of the runs' workspaces."""
        return self.state / "workspaces"

    @property
    def dvc_cache(self) -> Path:
        """The DVC cache that this machine's runs share."""
        return self.state / "dvc-cache"

    def lock(self, name: str) -> Path:
        """The file of a lock: `git`, or a run's slug."""
        return self.state / "locks" / f"{name}.lock"
