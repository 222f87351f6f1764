"""Training as a process of its own that can be killed, or kills itself while it saves.

Run as a script: `training_worker.py CHECKPOINT ITERATIONS` trains, or goes on from the checkpoint; with `fdopen`,
`fsync` or `replace` for the number it dies at that moment of its second checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.checkpoint import save_checkpoint
from drl_agents.training.trainer import Budget, train
from environments import files
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market

MOMENTS = ("fdopen", "fsync", "replace")


def build() -> tuple[AgentPPO, VectorizedCryptoEnvAlpaca]:
    options = {"kind": "momentum", "n_bars": 200, "n_assets": 2}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=1))
    env = VectorizedCryptoEnvAlpaca(market, 8, n_members=2, episode_length=13, seed=[5, 6])
    config = PPOConfig(horizon_len=8, num_minibatches=2, update_epochs=2, anneal_lr=True)
    agent = AgentPPO(PolicySpec.of(env, hidden=(8,)), config, (5, 6))
    agent.policy.row_normalizer.set(*env.normalizer_stats())
    return agent, env


def train_whole(path: str, iterations: int) -> None:
    """Says each iteration, and at the end a digest of all that was learned."""
    agent, env = build()
    train(
        agent, env, Budget(iterations=iterations), checkpoint=path, checkpoint_every=1, resume=True, facts={"seed": 5},
        on_iteration=lambda i, of, figures: print(i, flush=True),
    )  # fmt: skip
    parts = [agent.parameters.values, agent.optimizer.first, agent.optimizer.second, env.account.cash, env.bar]
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts))
    print("digest", digest.hexdigest(), flush=True)


def die(*ignored: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Half:
    """A file whose process dies when half of what is written has been."""

    def __init__(self, handle: int, mode: str) -> None:
        self.handle = handle

    def __enter__(self) -> Half:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def write(self, payload: bytes) -> None:
        os.write(self.handle, payload[: len(payload) // 2])
        die()


class System:
    """The module os, but for one function."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function

    def __getattr__(self, name: str) -> Any:
        return self.function if name == self.name else getattr(os, name)


def save_and_die(path: str, moment: str) -> None:
    agent, env = build()
    save_checkpoint(path, agent, env, 1, {})
    print("saved", flush=True)
    train(agent, env, Budget(iterations=1))
    files.os = System(moment, Half if moment == "fdopen" else die)
    save_checkpoint(path, agent, env, 2, {})
    print("survived", flush=True)


def main(path: str, what: str) -> None:
    torch.set_num_threads(1)
    if what in MOMENTS:
        save_and_die(path, what)
    else:
        train_whole(path, int(what))


if __name__ == "__main__":
    main(*sys.argv[1:])
