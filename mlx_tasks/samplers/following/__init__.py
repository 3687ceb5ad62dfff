"""A diffusers scheduler_config.json as a run of our samplers: the same levels, told times, steps, start and end.

Every key of a supported class is either followed or refused by name. Keys that the class does not have, which published
files carry along, are told and passed over, as diffusers does; nothing is quietly left out.
"""

from mlx_tasks.samplers.following.build import CLASSES, plan_from_config
from mlx_tasks.samplers.following.plan import Plan

__all__ = ["CLASSES", "Plan", "plan_from_config"]
