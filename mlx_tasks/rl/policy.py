"""A policy on disk without a pickle: its weights as safetensors, its shape as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.numpy import load, save
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, atomic_write_bytes, read_json, write_json

NET_ARCH = (32, 32)
LOG_STD_INIT = -1.0
_WEIGHTS, _SHAPE = "policy.safetensors", "policy.json"


def make_policy(observation_size: int, action_size: int) -> ActorCriticPolicy:
    """An untrained actor and critic over boxes in [-1, 1]: two hidden layers of 32 each, tanh."""
    return ActorCriticPolicy(
        spaces.Box(-1.0, 1.0, (observation_size,), np.float32),
        spaces.Box(-1.0, 1.0, (action_size,), np.float32),
        lambda _: 0.0,
        net_arch=list(NET_ARCH),
        log_std_init=LOG_STD_INIT,
    )


def box_sizes(model: ActorCriticPolicy | BaseAlgorithm) -> tuple[int, int]:
    """(observation size, action size) of a model over two flat boxes.  Raises: ValueError for other spaces."""
    sizes = []
    for space in (model.observation_space, model.action_space):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"the spaces must be flat boxes, got {space}")
        sizes.append(space.shape[0])
    return sizes[0], sizes[1]


def policy_arrays(policy: ActorCriticPolicy) -> dict[str, np.ndarray]:
    """The weights by name, copied."""
    return {name: value.detach().cpu().numpy().copy() for name, value in policy.state_dict().items()}


def set_policy_arrays(policy: ActorCriticPolicy, arrays: dict[str, np.ndarray]) -> None:
    """Give a policy the weights of `policy_arrays`.  Raises: RuntimeError for other names or shapes."""
    policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})


def save_policy(folder: Path, policy: ActorCriticPolicy, notes: dict[str, Any]) -> None:
    """Put `folder` in place with policy.safetensors and policy.json (sizes, layers, and the caller's notes)."""
    sizes = dict(zip(("observation_size", "action_size"), box_sizes(policy), strict=True))
    shape = {**sizes, "net_arch": list(NET_ARCH), "activation": "tanh", "log_std_init": LOG_STD_INIT, "notes": notes}
    with atomic_folder(folder) as fresh:
        atomic_write_bytes(fresh / _WEIGHTS, save(policy_arrays(policy)))
        write_json(fresh / _SHAPE, shape)


def load_policy(folder: Path, bundle: str | None = None) -> ActorCriticPolicy:
    """The policy of a folder.

    bundle: digest of the model it is to act on; None where it is only a start for learning on.
    Raises: DataError where a file is missing, damaged, of another shape, or was learned on another model.
    """
    try:
        shape = read_json(folder / _SHAPE)
        if shape["net_arch"] != list(NET_ARCH):
            raise DataError(f"{folder / _SHAPE} has layers {shape['net_arch']}, this code makes {list(NET_ARCH)}")
        learned_on = (shape.get("notes") or {}).get("bundle")
        if bundle is not None and learned_on != bundle:
            raise DataError(
                f"{folder} holds a policy that was learned on model {str(learned_on)[:12]}, not on {bundle[:12]}: run "
                "the tune stage for this model, or give the policy as a start to learn on from"
            )
        policy = make_policy(shape["observation_size"], shape["action_size"])
        set_policy_arrays(policy, load((folder / _WEIGHTS).read_bytes()))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder} holds no policy: {error!r}; run the tune stage again") from error
    policy.set_training_mode(False)
    return policy


def greedy_episode(policy: ActorCriticPolicy, environment: gym.Env, options: dict[str, Any]) -> tuple[float, dict]:
    """(sum of rewards, last info) of the episode in which the policy takes its likeliest actions."""
    observation, _ = environment.reset(options=options)
    total = 0.0
    while True:
        action, _ = policy.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, info = environment.step(action)
        total += float(reward)
        if terminated or truncated:
            return total, info
