"""`kill -9` at any moment: the run goes on from its last checkpoint and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from drl_agents.training.checkpoint import load_checkpoint
from environments.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 40

BUILD = textwrap.dedent(
    """
    import hashlib, os, signal, sys
    import torch
    from drl_agents.agents.ppo import AgentPPO, PPOConfig
    from drl_agents.networks.policy import PolicySpec
    from drl_agents.training.checkpoint import save_checkpoint
    from drl_agents.training.trainer import Budget, train
    from environments import files
    from environments.alpaca_env import VectorizedCryptoEnvAlpaca
    from environments.data.source import load_bars
    from environments.market import Market

    torch.set_num_threads(1)
    options = {"kind": "momentum", "n_bars": 200, "n_assets": 2}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=1))
    env = VectorizedCryptoEnvAlpaca(market, 8, n_members=2, episode_length=13, seed=[5, 6])
    config = PPOConfig(horizon_len=8, num_minibatches=2, update_epochs=2, anneal_lr=True)
    agent = AgentPPO(PolicySpec.of(env, hidden=(8,)), config, (5, 6))
    agent.policy.row_normalizer.set(*env.normalizer_stats())
    path = sys.argv[1]
    """
)

TRAIN = BUILD + textwrap.dedent(
    f"""
    train(agent, env, Budget(iterations={ITERATIONS}), checkpoint=path, checkpoint_every=1,
          resume=True, facts={{"seed": 5}},
          on_iteration=lambda i, of, figures: print(i, flush=True))
    parts = [agent.parameters.values, agent.optimizer.first, agent.optimizer.second,
             env.account.cash, env.bar]
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts))
    print("digest", digest.hexdigest(), flush=True)
    """
)

SAVE_AND_DIE = BUILD + textwrap.dedent(
    """
    save_checkpoint(path, agent, env, 1, {})
    print("saved", flush=True)
    train(agent, env, Budget(iterations=1))
    die = lambda *ignored: os.kill(os.getpid(), signal.SIGKILL)

    def half(handle, mode):
        class Half:
            def __enter__(self):
                return self
            def __exit__(self, *error):
                return False
            def write(self, payload):
                os.write(handle, payload[: len(payload) // 2])
                die()
        return Half()

    class System:
        def __getattr__(self, name):
            return changed if name == moment else getattr(os, name)

    moment = sys.argv[2]
    changed = half if moment == "fdopen" else die
    files.os = System()
    save_checkpoint(path, agent, env, 2, {})
    print("survived", flush=True)
    """
)


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


def test_killed_at_a_random_iteration_and_resumed(tmp_path):
    whole = start(TRAIN, str(tmp_path / "whole.pt"))
    killed_at = random.SystemRandom().randrange(2, ITERATIONS - 5)  # the first checkpoint comes after the first line
    victim = start(TRAIN, str(tmp_path / "killed.pt"))
    for line in victim.stdout:
        if int(line) == killed_at:
            victim.kill()
            break
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    resumed = start(TRAIN, str(tmp_path / "killed.pt"))
    expected, found = (run.communicate(timeout=120)[0].split("\n") for run in (whole, resumed))
    assert found[0] != "1", "the resumed run began from the start"
    assert killed_at <= int(found[0]) < ITERATIONS, killed_at
    assert found[-2] == expected[-2] and expected[-2].startswith("digest"), killed_at


def test_killed_while_saving_the_old_checkpoint_stays(tmp_path):
    """Half the bytes written; all written but not yet synced; synced but not yet moved into place."""
    moments = ("fdopen", "fsync", "replace")
    runs = [start(SAVE_AND_DIE, str(tmp_path / moment / "c.pt"), moment) for moment in moments]
    for moment, run in zip(moments, runs, strict=True):
        assert run.communicate(timeout=120)[0] == "saved\n", moment
        assert run.returncode == -signal.SIGKILL, moment
        assert load_checkpoint(tmp_path / moment / "c.pt")["iteration"] == 1
    # What the first left behind is half a checkpoint, and is not taken for one.
    (left,) = (tmp_path / "fdopen").glob(".c.pt.*")
    assert 0 < left.stat().st_size < (tmp_path / "fdopen" / "c.pt").stat().st_size
    with pytest.raises(InputError, match="cut short"):
        load_checkpoint(left)
