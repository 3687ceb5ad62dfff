"""What every branch of params.yaml's tree is made of (mlx_tasks/config.py)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Branch(BaseModel):
    """A frozen node of the tree; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def numbered(key: str, slots: tuple[int, ...]) -> tuple[int, ...]:
    """The slots of a mapped task.  Raises: ValueError unless they are 0, 1, 2, ..."""
    if list(slots) != list(range(len(slots))):
        raise ValueError(f"{key} must be 0, 1, 2, ... without gaps, got {list(slots)}")
    return slots
