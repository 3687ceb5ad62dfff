"""The search's study: an Optuna study whose one file is an artifact, asked for a generation and told it back.

The study lives in a journal (one JSON line an operation) that travels with the artifacts: whoever plans copies the
journal of the plan before, appends to the copy and hands on the result. Whoever runs a trial needs no study at all.

Optuna's multi-objective TPE proposes (Ozaki et al. 2020). Its random state is derived from (seed, generation), and what
it has learned comes from the journal, so equal seeds and equal results give equal proposals in any process and folder.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from mlx_tasks.errors import DataError
from mlx_tasks.search.space import Architecture, Space

logger = logging.getLogger(__name__)

STUDY_NAME = "architecture"
OBJECTIVES = ("error", "latency_ms", "peak_memory_mb")
"""All to be made small: distillation error on the validation split, measured latency of a batch, measured memory."""
_ASKS_PER_SLOT = 16


@dataclass(frozen=True)
class Proposal:
    """One slot of a generation.

    Attributes:
        slot: its number, from 0.
        number: the study's trial number; None where the space has no untried architecture left.
        architecture: what to train; None as above.
    """

    slot: int
    number: int | None
    architecture: Architecture | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for trials.json."""
        architecture = None if self.architecture is None else self.architecture.as_dict()
        return {"slot": self.slot, "number": self.number, "architecture": architecture}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Proposal:
        """Reverse of `as_dict`."""
        given = values["architecture"]
        return cls(values["slot"], values["number"], None if given is None else Architecture.from_dict(given))


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own log lines held back: the study's events are logged here."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def sampler_of(seed: int, generation: int) -> optuna.samplers.BaseSampler:
    """The sampler of a generation: TPE that treats open trials as bad, so that one generation's proposals differ.

    It learns from two results on, since a search here has few. Measured over 24 seeds on a smooth cost model of 288
    architectures, the dominated volume after two generations of 6: 0.71 of the whole front's; random choice 0.67,
    NSGA-II 0.63.  Raises: ValueError for a negative seed or generation.
    """
    if generation < 0 or seed < 0:
        raise ValueError(f"seed and generation must not be negative, got {seed} and {generation}")
    state = int(np.random.SeedSequence([seed, generation]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=state, n_startup_trials=2, multivariate=False)


def open_study(log: Path, space: Space, seed: int, generation: int) -> optuna.Study:
    """The study of a journal file, made if the file is not there, with the sampler of a generation.

    Raises: DataError if the journal belongs to another space or other objectives.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(log), lock_obj=JournalFileOpenLock(str(log))))
    with quiet():
        study = optuna.create_study(
            storage=storage,
            sampler=sampler_of(seed, generation),
            study_name=STUDY_NAME,
            directions=[StudyDirection.MINIMIZE] * len(OBJECTIVES),
            load_if_exists=True,
        )
    known = study.user_attrs.get("space")
    if known is None:
        study.set_user_attr("objectives", list(OBJECTIVES))
        study.set_user_attr("space", space.as_dict())
    elif known != space.as_dict():
        raise DataError(
            f"the study in {log.name} searched {known}, the params now say {space.as_dict()}: plan generation 0 again"
        )
    return study


def copy_log(source: Path, target: Path) -> None:
    """Copy a journal, so that whoever made it keeps it unchanged.  Raises: DataError if it is not there."""
    if not source.is_file():
        raise DataError(f"no study at {source}: run the plan before this one")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def ask(study: optuna.Study, space: Space, slots: Iterable[int], seed: int, generation: int) -> list[Proposal]:
    """One new architecture a slot, none of them tried or proposed before.

    What the sampler proposes twice, or what cannot be built, is told back as failed with the reason, and it is asked
    again; after 16 such answers the slot gets a seeded choice of what is left, and nothing once nothing is left.
    """
    tried = {_architecture(trial, space): trial.number for trial in study.trials if _was_proposed(trial)}
    rng = np.random.default_rng(np.random.SeedSequence([seed, generation, 1]))
    proposals = []
    for slot in slots:
        proposal = _propose(study, space, slot, tried) or _choose_untried(study, space, slot, tried, rng)
        if proposal.number is not None and proposal.architecture is not None:
            tried[proposal.architecture] = proposal.number
        logger.info("study=ask generation=%d slot=%d trial=%s", generation, slot, proposal.number)
        proposals.append(proposal)
    return proposals


def _propose(study: optuna.Study, space: Space, slot: int, tried: dict[Architecture, int]) -> Proposal | None:
    for _ in range(_ASKS_PER_SLOT):
        trial = study.ask()
        architecture = space.suggest(trial)
        reason = architecture.problem
        if reason is None and architecture in tried:
            reason = f"the same as trial {tried[architecture]}"
        if reason is None:
            trial.set_user_attr("slot", slot)
            return Proposal(slot, trial.number, architecture)
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
    return None


def _choose_untried(
    study: optuna.Study, space: Space, slot: int, tried: dict[Architecture, int], rng: np.random.Generator
) -> Proposal:
    left = [architecture for architecture in space if architecture not in tried]
    if not left:
        return Proposal(slot, None, None)
    architecture = left[int(rng.integers(len(left)))]
    with quiet():
        study.enqueue_trial(space.params(architecture))
    trial = study.ask()
    if space.suggest(trial) != architecture:
        raise AssertionError("an enqueued trial came back changed")
    trial.set_user_attr("slot", slot)
    return Proposal(slot, trial.number, architecture)


def tell(study: optuna.Study, space: Space, results: Iterable[dict[str, Any]]) -> list[int]:
    """Tell each result once; the numbers of the trials that were told now.

    A result is a trial's JSON: number, architecture, state (COMPLETE | FAIL | SKIPPED), values by objective, reason.
    A trial that the study already holds as finished is left as it is, so telling again after a crash changes nothing.
    Raises: DataError where a result is of another study (unknown number, another architecture), or lacks a value.
    """
    told = []
    trials = {trial.number: trial for trial in study.trials}
    for result in sorted(results, key=lambda r: (r["number"] is None, r["number"])):
        number = result["number"]
        if number is None:
            continue
        trial = trials.get(number)
        if trial is None or _architecture(trial, space).as_dict() != result["architecture"]:
            raise DataError(f"the result of trial {number} is not of this study: run the trials of this plan again")
        if trial.state.is_finished():
            continue
        values = _finite_values(result)
        reason = result.get("reason") or ""
        if values is None:
            reason = reason or "an objective is missing or not finite"
            study.set_user_attr(f"reason_{number}", reason)
            study.tell(number, state=TrialState.FAIL)
        else:
            study.tell(number, values)
        logger.info("study=tell trial=%d state=%s reason=%r", number, "FAIL" if values is None else "COMPLETE", reason)
        told.append(number)
    return told


def rows(study: optuna.Study, space: Space) -> list[dict[str, Any]]:
    """Every trial that was proposed, in the order of its number: what was tried and what came of it."""
    table = []
    for trial in study.trials:
        if not _was_proposed(trial):
            continue
        values = dict(zip(OBJECTIVES, trial.values, strict=True)) if trial.values else None
        table.append(
            {
                "number": trial.number,
                "slot": trial.user_attrs["slot"],
                "state": trial.state.name,
                "reason": study.user_attrs.get(f"reason_{trial.number}", ""),
                "architecture": _architecture(trial, space).as_dict(),
                "values": values,
            }
        )
    return table


def refusals(study: optuna.Study) -> list[dict[str, Any]]:
    """What the sampler proposed in vain: number, params and why (a duplicate, or not to be built)."""
    return [
        {"number": trial.number, "params": trial.params, "reason": trial.user_attrs["reason"]}
        for trial in study.trials
        if "reason" in trial.user_attrs
    ]


def _finite_values(result: dict[str, Any]) -> list[float] | None:
    values = result.get("values") or {}
    if result["state"] != "COMPLETE" or set(values) < set(OBJECTIVES):
        return None
    row = [values[name] for name in OBJECTIVES]
    return [float(v) for v in row] if all(v is not None and np.isfinite(v) for v in row) else None


def _was_proposed(trial: optuna.trial.FrozenTrial) -> bool:
    return "slot" in trial.user_attrs


def _architecture(trial: optuna.trial.FrozenTrial, space: Space) -> Architecture:
    """The architecture of a trial's recorded params."""
    return space.suggest(optuna.trial.FixedTrial(trial.params))  # type: ignore[arg-type]
