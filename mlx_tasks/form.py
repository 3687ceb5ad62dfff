"""The trigger form of `optimize_diffusion`: its fields, where each lands in params.yaml, and its bounds.

Bounds come from config.py's own JSON schema, so the form refuses what the tree would refuse. An empty field keeps the
preset's value. Imports neither Airflow nor MLX.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.config import Config
from mlx_tasks.errors import DataError
from mlx_tasks.params import load_config
from mlx_tasks.values import kinds_of, schema_of, split_setting, typed

KEEP = "preset"
"""What `promotion` says to keep the preset's value: a switch has no third position."""


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        name: its name in the form and in a run's conf.
        title: its caption.
        key: the dotted key it sets, or None for the two that have none.
        description: what it means, for the form.
        default: what the form opens with.
        schema: its JSON schema.
    """

    name: str
    title: str
    key: str | None
    description: str
    default: Any
    schema: dict[str, Any]


def fields(root: Path) -> tuple[Field, ...]:
    """The form's fields, in order.  root: the checkout, for the presets' names."""
    presets = preset_names(root)
    return (
        Field(
            "preset",
            "Preset",
            None,
            "A set of params under include/presets/; the fields below change single values of it. "
            "Empty: params.yaml as it stands.",
            "demo" if "demo" in presets else None,
            {"type": ["string", "null"], "enum": [*presets, None]},
        ),
        _field("dataset", "Dataset", "data.path", nullable=True),
        _field("resolutions", "Resolutions (pixels)", "train.resolutions", nullable=True),
        _field("steps_to_reach", "Steps to reach", "distill.target_steps", nullable=True),
        Field(
            "search_trials",
            "Search trials",
            "search.slots",
            "Architectures tried in each generation of the search (trials). Empty: the preset's value.",
            None,
            {"type": ["integer", "null"], "minimum": 1, "maximum": 64},
        ),
        Field(
            "score_tasks",
            "Scoring tasks",
            "evaluate.slots",
            "Tasks that candidates are scored by, side by side where there are several workers. "
            "Empty: the preset's value.",
            None,
            {"type": ["integer", "null"], "minimum": 1, "maximum": 64},
        ),
        _field("methods", "Ways of choosing the steps", "tune.methods", nullable=True),
        _field("ppo_steps", "PPO steps", "tune.ppo_steps", nullable=True),
        _field("nfe_budgets", "NFE budgets", "tune.nfe_budgets", nullable=True),
        _field("gate_limits", "Gate thresholds", "gate.limits", nullable=True),
        Field(
            "promotion",
            "Promotion",
            "gate.promote",
            "Whether a winner that passes the gate becomes champion: on, off, or what the preset says.",
            KEEP,
            {"type": "string", "enum": [KEEP, "on", "off"]},
        ),
        _field("seed", "Seed", "seed", nullable=True),
        Field(
            "start_from",
            "Begin again at",
            None,
            "Keep everything before this stage from the version below, with its params, and do this stage and those "
            "after it again with other random numbers. Empty: the whole chain. Alerts fill this in.",
            None,
            {"type": ["string", "null"], "enum": ["tune", "distill", "train", "", None]},
        ),
        Field(
            "begin_with",
            "Version to begin from",
            None,
            "NAME@ALIAS or NAME/VERSION, for 'Begin again at'. Empty: the champion of the model in params.",
            None,
            {"type": ["string", "null"]},
        ),
        Field("alerts", "Alerts", None, "The alerts that started this run.", None, {"type": ["array", "null"]}),
        Field(
            "reason",
            "Reason",
            None,
            "Why this run was started, for its notes.",
            None,
            {"type": ["string", "null"], "maxLength": 2000},
        ),
        Field(
            "overrides",
            "Advanced overrides",
            None,
            'Any other value of params.yaml by its dotted key, for example {"train.steps": 800}.',
            {},
            {
                "type": ["object", "null"],
                "propertyNames": {"pattern": r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$"},
            },
        ),
    )


def preset_names(root: Path) -> list[str]:
    """Names of the presets of a checkout, sorted."""
    return sorted(path.stem for path in (root / "include" / "presets").glob("*.yaml"))


def resolve(root: Path, form: dict[str, Any]) -> Config:
    """The tree that a filled-in form asks for.  Raises: DataError naming the field or key, its value and the rule."""
    return load_config(root, form.get("preset") or None, overrides(form))


def form_of(root: Path, settings: list[str]) -> dict[str, Any]:
    """The form that `FIELD=VALUE` texts fill in.  Raises: DataError for a text that its field does not take."""
    schemas = {field.name: field.schema for field in fields(root)}
    filled = {}
    for name, value in map(split_setting, settings):
        text = "string" in kinds_of(schemas.get(name, {"type": "string"}))
        filled[name] = value if text else typed(name, value, schemas[name])
    return filled


def overrides(form: dict[str, Any]) -> dict[str, Any]:
    """A filled-in form as dotted overrides; the advanced ones come last and win.  Raises: DataError."""
    known = ["preset", "overrides", "start_from", "begin_with", "alerts", "reason", *_KEYS]
    unknown = sorted(set(form) - set(known))
    if unknown:
        named = ", ".join(f"{name!r:.80}" for name in unknown)
        keys = [str(name) for name in unknown if schema_of(str(name))]
        how = f"; a key of params.yaml goes by overrides={{{keys[0]}: ...}}" if keys else ""
        raise DataError(f"the form has no field {named}; it has: {', '.join(known)}{how}")
    changed: dict[str, Any] = {}
    for name, key in _KEYS.items():
        value = form.get(name)
        if value is None or value == "" or value == []:
            continue
        if name == "promotion":
            if value == KEEP:
                continue
            value = _switch(value)
        elif name in ("search_trials", "score_tasks"):
            value = _slots(name, value)
        changed[key] = value
    advanced = form.get("overrides") or {}
    if not isinstance(advanced, dict):
        raise DataError(f"overrides must be a mapping of dotted keys to values, got {advanced!r:.80}")
    return {**changed, **advanced}


_KEYS = {
    "dataset": "data.path",
    "resolutions": "train.resolutions",
    "steps_to_reach": "distill.target_steps",
    "search_trials": "search.slots",
    "score_tasks": "evaluate.slots",
    "methods": "tune.methods",
    "ppo_steps": "tune.ppo_steps",
    "nfe_budgets": "tune.nfe_budgets",
    "gate_limits": "gate.limits",
    "promotion": "gate.promote",
    "seed": "seed",
}


def _switch(value: Any) -> bool:
    if value in ("on", "off") or isinstance(value, bool):
        return value in ("on", True)
    raise DataError(f"promotion must be on, off or {KEEP}, got {value!r}")


def _slots(name: str, value: Any) -> list[int]:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise DataError(f"{name} must be a whole number from 1 to 64, got {value!r}")
    return list(range(value))


def _field(name: str, title: str, key: str, *, nullable: bool) -> Field:
    schema = dict(schema_of(key) or {})
    description = schema.pop("description", "")
    schema.pop("default", None)
    schema.pop("title", None)
    if nullable:
        schema["type"] = [schema["type"], "null"]
        description += " Empty: the preset's value."
    return Field(name, title, key, description.strip(), None, schema)
