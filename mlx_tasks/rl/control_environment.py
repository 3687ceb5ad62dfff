"""A Gymnasium environment in which a policy also chooses each step's order, and where guidance is worth its price."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from mlx_tasks.rl.environment import OBSERVATION_SIZE, STOP_ABOVE, Choice, StepGridEnv
from mlx_tasks.samplers.solvers import find_solver

CONTROL_ENVIRONMENT_ID = "mlx_tasks/SamplerControl-v0"
ORDERS = (1, 2, 3)


class SamplerControlEnv(StepGridEnv):
    """`StepGridEnv` with two more choices a step. The budget is one of network evaluations.

    ## Action space: `Box(-1, 1, (4,), float32)`

    | i | meaning |
    |---|---|
    | 0, 1 | as in `StepGridEnv` |
    | 2 | order of the step to the next level: below -1/3 one, above 1/3 three, else two (DPM-Solver++ multistep) |
    | 3 | below 0: the next level is evaluated without guidance, for one evaluation instead of two |

    Without guidance in the problem the last one changes nothing. The target is guided everywhere, whatever is chosen.

    ## Observation space: `Box(-1, 1, (10,), float32)`

    Those of `StepGridEnv`, where "share of the budget left" counts evaluations, and:

    | i | meaning | at the start |
    |---|---|---|
    | 8 | whether the last level was guided (1) or not (-1) | -1 |
    | 9 | order of the last step, 1 (-1) to 3 (1) | -1 |

    Rewards are those of `StepGridEnv`; the evenly spaced grid that it compares with is guided everywhere.
    """

    observation_size, action_size = OBSERVATION_SIZE + 2, 4

    def _choice(self, action: np.ndarray) -> Choice:
        task = self._task
        self._most_cost = task.denoise.evaluations
        order = ORDERS[1 + int(action[2] > 1 / 3) - int(action[2] < -1 / 3)]
        dear = task.denoise.evaluations > 1
        guided = dear and action[3] >= 0 and self.budget - self.spent > 1
        unguided = task.unguided if task.unguided is not None else task.denoise
        self.controls.append((order, bool(guided)))
        return Choice(
            float(action[0]),
            bool(action[1] > STOP_ABOVE),
            find_solver("dpmpp_2m", order=order),
            task.denoise if guided or not dear else unguided,
            2 if guided else 1,
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As `StepGridEnv.reset`."""
        self.controls: list[tuple[int, bool]] = []
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As `StepGridEnv.step`; the last info also holds `orders` and `guided`, one a level."""
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated:
            info |= {"orders": [order for order, _ in self.controls], "guided": [on for _, on in self.controls]}
        return observation, reward, terminated, truncated, info

    def _observe(self) -> np.ndarray:
        observation = super()._observe()
        if self.controls:
            order, guided = self.controls[-1]
            observation[8:] = (1.0 if guided else -1.0, order - 2.0)
        return observation


if CONTROL_ENVIRONMENT_ID not in gym.registry:
    gym.register(CONTROL_ENVIRONMENT_ID, entry_point="mlx_tasks.rl.control_environment:SamplerControlEnv")
