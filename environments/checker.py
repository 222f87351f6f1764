"""check_env: does an environment keep the contract of `VecEnv`? For authors of plug-ins.

The built-in environments pass it too. What it finds is raised as `EnvError`, naming the rule.
"""

from __future__ import annotations

import gymnasium
import torch
from torch import Tensor

from environments.observation import Observation, build_observation
from environments.vec_env import VecEnv


class EnvError(AssertionError):
    """An environment breaks a rule of the `VecEnv` contract."""


def check_env(env: VecEnv, steps: int = 200, seed: int = 0) -> None:
    """Step `env` with random actions and check every rule that can be seen from outside.

    Shapes, dtypes and devices; observations inside their space (NaN only in market rows); same seed, same
    run; terminated and truncated never both; where no episode ends, the final observation is the observation; saved and
    restored, the run goes on the same.

    Raises:
        EnvError: the first rule broken.
    """
    _require(isinstance(env, VecEnv), f"{type(env).__name__} is not a VecEnv")
    _require(env.n_envs >= 1 and env.n_envs % env.n_members == 0, "n_envs is a positive multiple of n_members")
    first = _run(env, steps, seed)
    again = _run(env, steps, seed)
    for name, a, b in zip(("states", "rewards", "ends"), first, again, strict=True):
        _require(torch.equal(a, b), f"same seed, other {name}: reset(seed) must start the random numbers anew")
    saved = env.state_dict()
    if saved is not None:
        ahead = _play(env, 20, seed + 1)
        env.load_state_dict(saved)
        _require(
            all(torch.equal(a, b) for a, b in zip(ahead, _play(env, 20, seed + 1), strict=True)),
            "restored with load_state_dict, the run must go on as it did",
        )


def random_actions(env: VecEnv, generator: torch.Generator) -> Tensor:
    """(N, ...) actions drawn uniformly from the action space, on the environment's device."""
    space = env.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.randint(int(space.n), (env.n_envs,), generator=generator).to(env.device)
    return (torch.rand(env.n_envs, *space.shape, generator=generator) * 2 - 1).to(env.device)


def _run(env: VecEnv, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    _check_observation(env, env.reset(seed))
    return _play(env, steps, seed)


def _play(env: VecEnv, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states, rewards, ends = [], [], []
    for _ in range(steps):
        step = env.step(random_actions(env, generator))
        _check_observation(env, step.observation)
        _check_observation(env, step.final_observation)
        n = (env.n_envs,)
        _require(step.reward.shape == n and step.reward.dtype == torch.float32, "reward is (N,) float32")
        for name in ("terminated", "truncated"):
            flag = getattr(step, name)
            _require(flag.shape == n and flag.dtype == torch.bool, f"{name} is (N,) bool")
        _require(bool(step.reward.isfinite().all()), "rewards are finite")
        _require(not bool((step.terminated & step.truncated).any()), "an episode ends one way: terminated or truncated")
        going = ~(step.terminated | step.truncated)
        same = (step.observation.state == step.final_observation.state).all(-1)
        _require(bool(same[going].all()), "where no episode ends, final_observation is the observation")
        states.append(step.observation.state.clone())
        rewards.append(step.reward.clone())
        ends.append(torch.stack([step.terminated, step.truncated]).clone())
    return torch.stack(states), torch.stack(rewards), torch.stack(ends)


def _check_observation(env: VecEnv, observation: Observation) -> None:
    state = observation.state
    _require(state.shape == (env.n_envs, env.state_size), f"state is (N, K) = ({env.n_envs}, {env.state_size})")
    _require(state.dtype == torch.float32, "state is float32")
    _require(state.device.type == env.device.type, "state is on the environment's device")
    _require(bool(state.isfinite().all()), "states are finite")
    if env.rows is None:
        _require(observation.bar is None, "without market rows the bar is None")
    else:
        bar = observation.bar
        _require(bar is not None and bar.shape == (env.n_envs,) and bar.dtype == torch.int64, "bar is (N,) int64")
        _require(bool(((bar >= 0) & (bar < env.rows.shape[0])).all()), "bars index the market's rows")
    dense = build_observation(env.rows, observation, env.lookback)
    _require(dense.shape[1:] == env.single_observation_space.shape, "dense observations fit single_observation_space")
    _require(not bool(dense.isinf().any()), "no value is infinite")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise EnvError(rule)
