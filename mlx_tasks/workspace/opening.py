"""Open a run: resolve its params, fix its commit, make its workspace. The same call again finds what stands."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.files import atomic_write_text, read_json, write_json
from mlx_tasks.form import overrides, resolve
from mlx_tasks.locks import held
from mlx_tasks.params import write_params
from mlx_tasks.registry.model_name import with_model_name
from mlx_tasks.registry.names import CHAMPION
from mlx_tasks.registry.same_data import other_source_note
from mlx_tasks.workspace import git
from mlx_tasks.workspace.again import lineage, with_alerts
from mlx_tasks.workspace.dataset import dataset_folder, with_dataset
from mlx_tasks.workspace.mlflow_parent import experiment_note, start_parent
from mlx_tasks.workspace.paths import Places, run_slug, workspace_path
from mlx_tasks.workspace.secrecy import secrets_in
from mlx_tasks.workspace.snapshot import DATASET, Snapshot, take_snapshot
from mlx_tasks.workspace.store import remote_lines

logger = logging.getLogger(__name__)


class Run(TypedDict):
    """What every node must know of its run: small, and true on any machine.

    run_id and slug; commit that holds its code and params; branch that names it; base: HEAD of the checkout it was
    taken from; edited: whether uncommitted edits were taken along; digest of its params; mlflow_parent: id or None;
    notes: lines for people.
    """

    kind: str
    run_id: str
    slug: str
    commit: str
    branch: str
    base: str
    edited: bool
    digest: str
    mlflow_parent: str | None
    mlflow_url: str | None
    notes: NotRequired[list[str]]


def open_run(places: Places, run_id: str, form: dict[str, Any]) -> Run:
    """Make a run's workspace and branch, or return what an earlier call for the same id made.

    Raises: DataError for a bad value of the form or a checkout that is none (before anything is made);
    UnavailableError where MLflow or git does not answer.
    """
    slug, path = run_slug(run_id), workspace_path(places.state, run_id)
    with held(places.lock(slug), f"open {run_id}", what=f"the workspace {slug}"):
        marker = _marker(path)
        if marker.exists():
            return read_json(marker)
        if form.get("begin_with") and not form.get("start_from") and not form.get("alerts"):
            raise DataError(
                f"begin_with names the version that a run begins again from, got {form['begin_with']!r:.80}: say at "
                "which stage by start_from, or leave it out for the whole chain"
            )
        form = with_alerts(form)
        config = with_model_name(resolve(places.repository, form), places.repository)
        git.check_checkout(places.repository)
        notes, reason = [], str(form.get("reason") or "")
        commit = None
        if reason:
            notes.append(f"started because: {reason}")
        if stage := form.get("start_from"):
            model = form.get("begin_with") or f"{config.register_.model_name}@{CHAMPION}"
            taken = lineage(places, model, stage)
            config, commit = taken.config, taken.commit
            notes.append(f"begins again at {stage}, with code, params and all before it from {taken.uri}")
            if unused := sorted(overrides(form)):
                notes.append(f"not used, for the params are those of {taken.uri}: {', '.join(unused)} of the form")
        _check_params(config)
        run = _make(places, run_id, config, path, commit, notes)
        run["mlflow_parent"], run["mlflow_url"] = start_parent(run_id, _tags(run, reason))
        run["notes"] = [*run.get("notes", []), *filter(None, (experiment_note(), other_source_note(path, config)))]
        write_json(marker, run)
    return run


def ensure_workspace(places: Places, run: Run) -> Path:
    """The run's workspace on this machine, made from the run's commit if it is not there.

    Raises: UnavailableError where the commit cannot be found or fetched.
    """
    path = workspace_path(places.state, run["run_id"])
    marker = _marker(path)
    if marker.exists():
        return path
    if not git.has_commit(places.repository, run["commit"]):
        _fetch(places, run)
    with held(places.lock("git"), f"workspace of {run['run_id']}", what="git"):
        if marker.exists():
            return path
        git.add_worktree(places.repository, path, run["commit"])
        configure_dvc(places, path)
        write_json(marker, dict(run))
    return path


def _make(
    places: Places, run_id: str, config: Config, path: Path, commit_of_lineage: str | None, notes: list[str]
) -> Run:
    """The workspace, at the checkout as it stands or at a lineage's commit, with the run's params on its branch."""
    slug, branch = run_slug(run_id), f"runs/{run_slug(run_id)}"
    with held(places.lock("git"), f"open {run_id}", what="git"):
        if commit_of_lineage is not None:
            taken = Snapshot(commit_of_lineage)
        else:
            why = f"Uncommitted edits that run {run_id} was started with"
            taken = take_snapshot(places.repository, why, dataset_folder(places.repository, config))
        git.add_worktree(places.repository, path, taken.commit)
        base = git.git(places.repository, "rev-parse", "HEAD")
        notes += taken.notes(branch)
        logger.info("run=%s edited=%d new=%d left=%d", slug, len(taken.edited), len(taken.new), len(taken.left))
        if commit_of_lineage is None or not (path / config.data.path).exists():
            config = with_dataset(places.repository, path, config, DATASET in taken.left.values())
        write_params(config, path / "params.yaml")
        message = f"Params of run {run_id} (digest {config.digest})"
        commit = git.commit_files(path, branch, message, ("params.yaml",))
        configure_dvc(places, path)
    if places.git_remote:
        git.push(places.repository, places.git_remote, branch)
    return Run(
        kind="run",
        run_id=run_id,
        slug=slug,
        commit=commit,
        branch=branch,
        base=base,
        edited=bool(taken.edited or taken.new),
        digest=config.digest,
        mlflow_parent=None,
        mlflow_url=None,
        notes=notes,
    )


def _fetch(places: Places, run: Run) -> None:
    if places.git_remote is None:
        raise UnavailableError(
            f"commit {run['commit'][:12]} of run {run['run_id']} is not in {places.repository}: on several machines "
            "set ADO_GIT_REMOTE to a git remote that all of them reach"
        )
    git.fetch(places.repository, places.git_remote, run["branch"])


def configure_dvc(places: Places, path: Path) -> None:
    """Point a workspace's DVC at this machine's shared cache and at the remote."""
    places.dvc_cache.mkdir(parents=True, exist_ok=True)
    site = places.state / "dvc-site"
    site.mkdir(mode=0o700, parents=True, exist_ok=True)
    site.chmod(0o700)  # DVC lets everybody write in what it makes there, and reads it back as pickles
    if "://" not in places.dvc_remote:
        Path(places.dvc_remote).mkdir(parents=True, exist_ok=True)
    lines = [
        "[core]",
        "    analytics = false",
        "    check_update = false",
        "    remote = ado",
        f"    site_cache_dir = {site}",
        "[cache]",
        f"    dir = {places.dvc_cache}",
        *remote_lines(places),
    ]
    atomic_write_text(path / ".dvc" / "config.local", "\n".join(lines) + "\n")


def _check_params(config: Config) -> None:
    """Raises: DataError for a value that looks like a secret: the run's params are in its commit."""
    for key, value in _texts(config.dump()):
        if found := next(secrets_in(f"{key.rpartition('.')[2]}: {value}".encode("utf-8", "replace")), None):
            raise DataError(f"params must hold no secret, for a run keeps them in a commit: {key} is {found.kind}")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a tree."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}".lstrip("."))


def _tags(run: Run, reason: str) -> dict[str, str]:
    told = {"ado.reason": reason, "mlflow.note.content": f"Started because: {reason}"} if reason else {}
    return {
        **told,
        "mlflow.source.name": "optimize_diffusion",
        "mlflow.source.git.commit": run["commit"],
        "ado.run_id": run["run_id"],
        "ado.branch": run["branch"],
        "ado.params_digest": run["digest"],
    }


def _marker(path: Path) -> Path:
    """Written last, so a workspace without it is half made."""
    return path / ".run" / "run.json"


def remove_workspace(places: Places, path: Path) -> None:
    """Remove a workspace; its branch and its artifacts in the cache and the remote stay."""
    with held(places.lock("git"), f"remove {path.name}", what="git"):
        git.remove_worktree(places.repository, path)
        shutil.rmtree(path, ignore_errors=True)
