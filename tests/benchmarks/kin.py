"""Each of PPO's kin on its classic, beside stable-baselines3's own agent, and on a planted edge; writes kin.json.

    python -m tests.benchmarks.kin [SECONDS [ROWS]]

Rows that kin.json already has are kept; none is begun after SECONDS, and none whose name does not begin with ROWS. The
three seeds of one of our agents are one population; those of stable-baselines3 run one after another. Both count as
solved at the first look at which the mean return over 20 starts reaches the threshold, and over 20 others as well.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, DDPG, DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

from drl_agents.agents.base import AgentBase
from drl_agents.agents.registry import build_agent
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.spec import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.adapters import GymnasiumVecEnv
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.files import write_json
from environments.market import Market

OUT = Path(__file__).with_suffix(".json")
SEEDS = (1, 2, 3)
STARTS, LOOK_AT, HELD_OUT = 20, 10_000, 20_000  # starts of a look; seeds of what is looked at, and of what is not
LOOKS = 25

# steps: what CleanRL's PPO is documented with; for Pendulum-v1, which it does not list, and for DQN, with the
# hyper-parameters on both sides, RL Zoo's (https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml).
CLASSICS: dict[str, dict[str, Any]] = {
    "a2c": {
        "env": "CartPole-v1", "threshold": 475.0, "steps": 500_000, "n_envs": 8,
        "network": {"hidden": (64, 64), "activation": "tanh"}, "config": {},
        "peer": (A2C, {}),
    },
    "ddpg": {
        "env": "Pendulum-v1", "threshold": -200.0, "steps": 20_000, "n_envs": 1,
        "network": {"hidden": (64, 64), "activation": "relu"},
        "config": {"learning_rate": 1e-3, "learning_starts": 1_000, "gamma": 0.98, "policy_frequency": 1},
        "peer": (DDPG, {"learning_rate": 1e-3, "learning_starts": 1_000, "gamma": 0.98}),
    },
    "td3": {
        "env": "Pendulum-v1", "threshold": -200.0, "steps": 20_000, "n_envs": 1,
        "network": {"hidden": (64, 64), "activation": "relu"},
        "config": {"learning_rate": 1e-3, "learning_starts": 1_000, "gamma": 0.98},
        "peer": (TD3, {"learning_rate": 1e-3, "learning_starts": 1_000, "gamma": 0.98}),
    },
    "dqn": {
        "env": "CartPole-v1", "threshold": 475.0, "steps": 50_000, "n_envs": 1,
        "network": {"hidden": (256, 256), "activation": "relu"},
        # Every 256 steps 128 gradient steps in one go, during which stable-baselines3's target stays as it is too.
        "config": {"horizon_len": 256, "update_to_data": 0.5, "target_network_frequency": 128, "learning_rate": 2.3e-3,
                   "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000, "exploration_fraction": 0.16,
                   "end_e": 0.04},
        "peer": (DQN, {"learning_rate": 2.3e-3, "buffer_size": 100_000, "learning_starts": 1_000, "batch_size": 64,
                       "train_freq": 256, "gradient_steps": 128, "target_update_interval": 10,
                       "exploration_fraction": 0.16, "exploration_final_eps": 0.04}),
    },
    "sac": {
        "env": "Pendulum-v1", "threshold": -200.0, "steps": 20_000, "n_envs": 1,
        "network": {"hidden": (64, 64), "activation": "relu"},
        "config": {"policy_lr": 1e-3, "q_lr": 1e-3, "learning_starts": 1_000},
        "peer": (SAC, {"learning_rate": 1e-3, "learning_starts": 1_000}),
    },
}  # fmt: skip

SPLIT, END = 9_000, 12_000
FREE = {"commission_bps": 0.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}
BOX = {"action": "trades", "action_options": {"max_trade": 1.0}}
OFF_POLICY = {
    "learning_starts": 2_048,
    "horizon_len": 16,
    "gamma": 0.9,
    "update_to_data": 1 / 32,
    "reward_scale": 100.0,
}
# iterations: of 64 environments.
EDGES: dict[str, dict[str, Any]] = {
    "ppo": {"scheme": BOX, "iterations": 60, "config": {"horizon_len": 64, "learning_rate": 1e-3, "gamma": 0.9}},
    "a2c": {"scheme": BOX, "iterations": 480, "config": {"horizon_len": 8, "gamma": 0.9, "norm_adv": True}},
    "sac": {"scheme": BOX, "iterations": 240, "config": OFF_POLICY},
    "td3": {"scheme": BOX, "iterations": 240, "config": {**OFF_POLICY, "update_to_data": 1 / 64}},
    "ddpg": {"scheme": BOX, "iterations": 240, "config": {**OFF_POLICY, "update_to_data": 1 / 64}},
    "dqn": {"scheme": {"action": "regimes"}, "iterations": 240,
            "config": {**OFF_POLICY, "buffer_size": 200_000, "learning_rate": 1e-3}},
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ the classics


def gym_members(name: str, n_members: int, n_envs: int, seed: int) -> GymnasiumVecEnv:
    """A population's environments, `n_envs` for each member."""
    env = GymnasiumVecEnv(lambda: gymnasium.make(name), n_members * n_envs, seed=seed)
    env.n_members = n_members
    return env


def mean_returns(decide: Callable[[torch.Tensor], torch.Tensor], env: GymnasiumVecEnv, seed: int) -> list[float]:
    """Each member's mean undiscounted return over its environments' first episodes."""
    observation, p = env.reset(seed), env.n_members
    total, going = torch.zeros(env.n_envs), torch.ones(env.n_envs, dtype=torch.bool)
    while going.any():
        step = env.step(decide(observation.state.view(p, -1, env.state_size)).flatten(0, 1))
        total += torch.where(going, step.reward, 0.0)
        going = going & ~(step.terminated | step.truncated)
        observation = step.observation
    return total.view(p, -1).mean(1).tolist()


class Judge:
    """Looks at the policies of some members, and notes when each was first good on starts not looked at before."""

    def __init__(self, name: str, threshold: float, members: int) -> None:
        self.env, self.threshold = gym_members(name, members, STARTS, LOOK_AT), threshold
        self.solved: list[int | None] = [None] * members
        self.held_out: list[float | None] = [None] * members
        self.seconds = 0.0

    def look(self, decide: Callable[[torch.Tensor], torch.Tensor], timesteps: int) -> bool:
        """True once all are solved."""
        began = time.process_time()
        good = [value >= self.threshold for value in mean_returns(decide, self.env, LOOK_AT)]
        if any(now and was is None for now, was in zip(good, self.solved, strict=True)):
            again = mean_returns(decide, self.env, HELD_OUT)
            for member, value in enumerate(again):
                if self.solved[member] is None and good[member] and value >= self.threshold:
                    self.solved[member], self.held_out[member] = timesteps, round(value, 1)
        self.seconds += time.process_time() - began
        return None not in self.solved

    def result(self, timesteps: int, seconds: float, decide: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        last = mean_returns(decide, self.env, HELD_OUT)
        return {
            "solved_at_steps": self.solved,
            "held_out_return": self.held_out,
            "steps": timesteps,
            "return_at_end": [round(value, 1) for value in last],
            "cpu_seconds": round(seconds - self.seconds, 1),
        }


def ours(name: str) -> dict[str, Any]:
    """Our agent's row: three members in one batch."""
    task = CLASSICS[name]
    env = gym_members(task["env"], len(SEEDS), task["n_envs"], seed=100)
    agent = build_agent(name, PolicySpec.of(env, **task["network"]), task["config"], SEEDS)
    judge, state = Judge(task["env"], task["threshold"], len(SEEDS)), {"done": False, "looks": 0, "steps": 0}
    per_iteration = agent.config.horizon_len * task["n_envs"]

    def look(iteration: int, of: int | None, figures: dict[str, float]) -> None:
        state["steps"] = iteration * per_iteration
        if state["steps"] * LOOKS // task["steps"] > state["looks"]:
            state["looks"] += 1
            state["done"] = judge.look(agent.decide, state["steps"])

    began = time.process_time()
    train(agent, env, Budget(timesteps=task["steps"]), on_iteration=look, stop=lambda: state["done"])
    return judge.result(state["steps"], time.process_time() - began, agent.decide)


class PeerLook(BaseCallback):
    """The same looks at a model of stable-baselines3."""

    def __init__(self, judge: Judge, steps: int) -> None:
        super().__init__()
        self.judge, self.steps, self.looks = judge, steps, 0

    def decide(self, x: torch.Tensor) -> torch.Tensor:
        action = torch.as_tensor(self.model.predict(x[0].numpy(), deterministic=True)[0])
        box = isinstance(self.model.action_space, gymnasium.spaces.Box)
        # Ours are in [-1, 1], theirs in the environment's bounds.
        return (action / float(self.model.action_space.high[0]) if box else action).unsqueeze(0)

    def _on_step(self) -> bool:
        if self.num_timesteps * LOOKS // self.steps <= self.looks:
            return True
        self.looks += 1
        return not self.judge.look(self.decide, self.num_timesteps)


def peer(name: str, seed: int) -> dict[str, Any]:
    """One seed of stable-baselines3's agent."""
    task = CLASSICS[name]
    kind, options = task["peer"]
    network = task["network"]
    activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[network["activation"]]
    if kind in (TD3, DDPG):  # their default is none
        size = gymnasium.make(task["env"]).action_space.shape[0]
        options = {**options, "action_noise": NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))}
    policy = {"net_arch": list(network["hidden"]), "activation_fn": activation}
    env = make_vec_env(task["env"], n_envs=task["n_envs"], seed=seed)
    model = kind("MlpPolicy", env, seed=seed, policy_kwargs=policy, device="cpu", **options)
    judge = Judge(task["env"], task["threshold"], 1)
    callback = PeerLook(judge, task["steps"])
    began = time.process_time()
    model.learn(task["steps"], callback=callback)
    return judge.result(model.num_timesteps, time.process_time() - began, callback.decide)


# ------------------------------------------------------------------------------------------- the planted edge


def edge(name: str) -> dict[str, Any]:
    """What an agent of three members earns, after training, on later bars of a market with a planted edge."""
    task = EDGES[name]
    planted = {"kind": "signal", "n_bars": END, "n_assets": 1, "sigma": 0.01, "ic": 0.2, "rho": 0.9}
    market = Market.from_bars(load_bars("synthetic", options=planted, seed=1))
    own = {"reward": "log_return", **FREE, **task["scheme"]}
    p = len(SEEDS)
    env = VectorizedCryptoEnvAlpaca(market, 64 * p, n_members=p, segments=[(0, SPLIT)], seed=list(SEEDS), **own)
    agent = build_agent(name, PolicySpec.of(env, hidden=(64, 64)), task["config"], SEEDS)
    agent.policy.fit_normalizer(env)
    began = time.process_time()
    result = train(agent, env, Budget(iterations=task["iterations"]))
    seconds = time.process_time() - began
    growth = walk(market, agent, own)
    best = market.planted["optimal_log_return_per_bar"] * (END - SPLIT)
    return {
        "log_growth": [round(value, 3) for value in growth],
        "expected_of_the_best": round(best, 3),
        "share_of_the_known_policy": [round(value / known(market), 3) for value in growth],
        "steps": result.timesteps // p,
        "cpu_seconds": round(seconds, 1),
    }


def walk(market: Market, agent: AgentBase, options: dict[str, Any]) -> list[float]:
    """Log growth of each member over the bars after the split."""
    p = agent.n_members
    own = {"segments": [(SPLIT, END)], "random_start": False, "episode_length": None, **options}
    env = VectorizedCryptoEnvAlpaca(market, p, n_members=p, **own)
    return [math.log(one.equity[-1] / one.equity[0]) for one in backtest(env, agent.decide)]


def known(market: Market) -> float:
    """Log growth of the policy that holds all while the signal is positive and nothing otherwise."""
    own = {"segments": [(SPLIT, END)], "random_start": False, "episode_length": None, "reward": "log_return"}
    env = VectorizedCryptoEnvAlpaca(market, 1, **own, **FREE, **BOX)
    column = env.features.names.index("signal")
    (one,) = backtest(env, lambda x: torch.where(x[..., column : column + 1] > 0, 1.0, -1.0))
    return math.log(one.equity[-1] / one.equity[0])


# -------------------------------------------------------------------------------------------------- the table


def rows() -> dict[str, Callable[[], dict[str, Any]]]:
    """{name of a row: what makes it}."""
    table: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in EDGES:
        table[f"edge {name}"] = lambda name=name: edge(name)
    for name in CLASSICS:
        table[f"classic {name}"] = lambda name=name: ours(name)
    for name in CLASSICS:
        for seed in SEEDS:
            table[f"classic {name} stable-baselines3 {seed}"] = lambda name=name, seed=seed: peer(name, seed)
    return table


def saved() -> dict[str, Any]:
    """The rows that are there."""
    return json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}


def main(seconds: float, only: str) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    for name, make in rows().items():
        if name in saved() or not name.startswith(only):
            continue
        if time.monotonic() - began > seconds:
            print(f"{name} and what follows is left for the next run")
            return
        row = make()
        print(name, json.dumps(row), flush=True)
        done = {**saved(), name: row}
        write_json(OUT, {key: done[key] for key in rows() if key in done})


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else math.inf, sys.argv[2] if len(sys.argv) > 2 else "")
