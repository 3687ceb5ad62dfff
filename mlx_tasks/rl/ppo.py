"""PPO on the step grid, iteration by iteration, so that a killed run goes on exactly where it was.

Every iteration (one rollout, then its updates) begins with fresh episodes, and its random states are derived from
(seed, iteration). What carries over is then the policy and its optimiser alone, and those are what a checkpoint holds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import mlx.core as mx
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy

from mlx_tasks.rl.policy import LOG_STD_INIT, NET_ARCH, box_sizes, make_policy, policy_arrays, set_policy_arrays
from mlx_tasks.training.checkpoint import clear_checkpoints, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

LEAST_GAIN = 0.01
"""Of the best reward, a hundredth of a natural logarithm of the error by default: less is no gain."""

Judge = Callable[[ActorCriticPolicy], float]
"""The value of a policy's likeliest actions on batches that it does not learn from; higher is better."""


@dataclass(frozen=True)
class PpoOptions:
    """Numbers of the learning; Schulman et al. 2017 name them alike.

    Attributes:
        steps: environment steps in all.
        num_envs: environments side by side.
        seed: everything random derives from it and the iteration.
        rollout: environment steps of one iteration, over all environments.
        patience: iterations without a gain of LEAST_GAIN in the best reward after which learning ends; None: never.
        minibatch, epochs, learning_rate, clip_range, gae_lambda: of the updates. Episodes are short, so gamma is 1.
    """

    steps: int
    num_envs: int = 4
    seed: int = 0
    rollout: int = 128
    patience: int | None = None
    minibatch: int = 64
    epochs: int = 10
    learning_rate: float = 3e-3
    clip_range: float = 0.2
    gae_lambda: float = 0.95

    @property
    def steps_per_env(self) -> int:
        """Steps of one environment in one iteration."""
        return max(2, min(self.rollout, self.steps) // self.num_envs)

    @property
    def iterations(self) -> int:
        """Iterations that together take at least `steps`."""
        return math.ceil(self.steps / (self.steps_per_env * self.num_envs))


@dataclass(frozen=True)
class Iteration:
    """What one iteration did.

    Attributes:
        number: from 1.
        steps: environment steps so far.
        episodes: ended in the rollouts so far.
        reward: mean over the episodes that ended in the rollout, with exploration; None if none ended.
        greedy_reward: the judge's value after the updates.
        best_reward: the highest of those so far; its policy is the one kept.
        seconds: of the rollout, the updates and the judging.
        evaluations: network evaluations spent so far, judging included.
    """

    number: int
    steps: int
    episodes: int
    reward: float | None
    greedy_reward: float
    best_reward: float
    seconds: float
    evaluations: int


class Learner:
    """PPO around an environment; `best` is the policy that the judge liked most, the untrained one included.

    spent: network evaluations that the environments and the judge have taken in this process.
    """

    def __init__(
        self, make_env: Callable[[], gym.Env], options: PpoOptions, judge: Judge, spent: Callable[[], int] = lambda: 0
    ) -> None:
        torch.set_num_threads(1)
        self.options, self._judge, self._spent = options, judge, spent
        self._ppo = PPO(
            "MlpPolicy",
            make_vec_env(make_env, options.num_envs, seed=options.seed),
            seed=options.seed,
            device="cpu",
            n_steps=options.steps_per_env,
            batch_size=min(options.minibatch, options.steps_per_env * options.num_envs),
            n_epochs=options.epochs,
            learning_rate=options.learning_rate,
            clip_range=options.clip_range,
            gamma=1.0,
            gae_lambda=options.gae_lambda,
            stats_window_size=10_000,
            policy_kwargs={"net_arch": list(NET_ARCH), "log_std_init": LOG_STD_INIT},
        )
        self._ppo.set_logger(Logger(folder=None, output_formats=[]))  # SB3's own makes a folder in /tmp for each learn
        self.history: list[Iteration] = []
        self._best = policy_arrays(self._ppo.policy)
        self._best_reward = -math.inf

    @property
    def best(self) -> ActorCriticPolicy:
        """A copy of the best policy."""
        policy = make_policy(*box_sizes(self._ppo))
        set_policy_arrays(policy, self._best)
        policy.set_training_mode(False)
        return policy

    def start_from(self, policy: ActorCriticPolicy) -> None:
        """Go on from a policy learned elsewhere.  Raises: RuntimeError for one of another shape."""
        set_policy_arrays(self._ppo.policy, policy_arrays(policy))
        self._best = policy_arrays(self._ppo.policy)

    @property
    def converged(self) -> bool:
        """Whether the best reward has gained less than LEAST_GAIN over the last `patience` iterations."""
        patience, best = self.options.patience, [record.best_reward for record in self.history]
        return patience is not None and len(best) > patience and best[-1] < best[-1 - patience] + LEAST_GAIN

    def iterate(self, checkpoints: Path | None = None, identity: str = "") -> Iterator[Iteration]:
        """Learn: one record an iteration, a checkpoint after each was taken; goes on from `checkpoints`.

        identity: what the run is a function of; a checkpoint of another is dropped.
        """
        if checkpoints is not None:
            self._resume(checkpoints, identity)
        earlier = self.history[-1].evaluations if self.history else 0
        before = self._spent()
        if not self.history:
            self._best_reward = self._judge(self._ppo.policy)
        for number in range(len(self.history) + 1, self.options.iterations + 1):
            if self.converged:
                logger.info("converged=%d reward=%.4f", number - 1, self._best_reward)
                return
            start = time.perf_counter()
            rollout = self.options.steps_per_env * self.options.num_envs
            state = np.random.SeedSequence([self.options.seed, number]).generate_state(1)[0] % 2**31
            self._ppo.set_random_seed(int(state))
            self._ppo.learn(rollout, reset_num_timesteps=True)  # fresh episodes from the fresh seed
            rewards = [episode["r"] for episode in self._ppo.ep_info_buffer or []]
            greedy = self._judge(self._ppo.policy)
            if greedy > self._best_reward:
                self._best, self._best_reward = policy_arrays(self._ppo.policy), greedy
            mean = float(np.mean(rewards)) if rewards else None
            seconds = time.perf_counter() - start
            evaluations = earlier + self._spent() - before
            episodes = len(rewards) + (self.history[-1].episodes if self.history else 0)
            record = Iteration(
                number, number * rollout, episodes, mean, greedy, self._best_reward, seconds, evaluations
            )
            self.history.append(record)
            logger.info("ppo=%d steps=%d reward=%s greedy=%.4f", number, record.steps, mean, greedy)
            yield record
            if checkpoints is not None:
                save_checkpoint(checkpoints, number, self._arrays(), self._state(identity))

    def _state(self, identity: str) -> dict[str, Any]:
        history = [asdict(record) for record in self.history]
        return {"identity": identity, "best_reward": self._best_reward, "history": history}

    def _arrays(self) -> dict[str, mx.array]:
        policy = {f"policy/{name}": value for name, value in policy_arrays(self._ppo.policy).items()}
        best = {f"best/{name}": value for name, value in self._best.items()}
        adam = {
            f"adam/{index}/{name}": value.numpy()
            for index, moments in self._ppo.policy.optimizer.state_dict()["state"].items()
            for name, value in moments.items()
        }
        return {name: mx.array(value) for name, value in (policy | best | adam).items()}

    def _resume(self, checkpoints: Path, identity: str) -> None:
        found = load_checkpoint(checkpoints)
        if found is None:
            return
        if found.state["identity"] != identity:
            logger.warning("checkpoints=%s dropped='they are of other params or another model'", checkpoints)
            clear_checkpoints(checkpoints)
            return
        arrays = {name: np.array(value) for name, value in found.arrays.items()}
        set_policy_arrays(self._ppo.policy, _under(arrays, "policy/"))
        self._best, self._best_reward = _under(arrays, "best/"), found.state["best_reward"]
        optimizer = self._ppo.policy.optimizer.state_dict()
        for name, value in _under(arrays, "adam/").items():
            index, _, moment = name.partition("/")
            optimizer["state"].setdefault(int(index), {})[moment] = torch.from_numpy(value)
        self._ppo.policy.optimizer.load_state_dict(optimizer)
        self.history = [Iteration(**record) for record in found.state["history"]]
        logger.info("resumed=%s iteration=%d", checkpoints, found.step)


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
