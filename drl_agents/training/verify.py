"""Is everything in place? Each check says what was looked at, and how to mend it."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.training.device import available_devices
from environments.alpaca_env import default_env
from environments.data.source import load_bars
from environments.market import Market
from environments.plugin import build_env

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "gymnasium": "gymnasium",
    "optuna": "optuna",
    "alpaca-py": "alpaca",
    "matplotlib": "matplotlib",
    "pyyaml": "yaml",
    "TA-Lib": "talib",
    "tyro": "tyro",
    "rich": "rich",
    "safetensors": "safetensors",
    "psutil": "psutil",
}
REINSTALL = "run ./start_vectorized_training.sh, or pip install -c constraints.txt -e ."


@dataclass(frozen=True)
class Finding:
    """One check. mend: what to do when it failed. needed: False for what the project does without."""

    name: str
    passed: bool
    detail: str
    mend: str
    needed: bool = True


def check_all(logs: Path, study_storage: Callable[[Path], str]) -> list[Finding]:
    """All checks, in the order things are needed.

    Args:
        logs: folder runs write to.
        study_storage: opens a study storage in a folder and says what it did; raises where it cannot.
    """
    checks: list[tuple[str, str, Callable[[], str]]] = [
        ("Python", "install Python 3.11 or 3.12", _python),
        *((f"package {name}", REINSTALL, lambda n=name, m=module: _package(n, m)) for name, module in PACKAGES.items()),
        ("devices", "reinstall torch for your GPU: https://pytorch.org/get-started", _devices),
        *(
            (f"forward pass on {d}", f"use --gpu cpu, or mend the driver of {d}", lambda d=d: _forward(d))
            for d in available_devices()
        ),
        ("data", "the embedded sample is damaged: reinstall the project", _data),
        ("two-step rollout", REINSTALL, _rollout),
        ("study storage", f"make {logs} writable, or give --storage", lambda: _storage(logs, study_storage)),
    ]
    findings = []
    for name, mend, check in checks:
        try:
            findings.append(Finding(name, True, check(), ""))
        except Exception as error:  # whatever is broken is what this tells
            findings.append(
                Finding(
                    name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", mend
                )
            )
    return findings


def _python() -> str:
    number = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise RuntimeError(f"Python {number}; 3.11 and 3.12 are supported")
    return number


def _package(name: str, module: str) -> str:
    importlib.import_module(module)
    return version(name)


def _devices() -> str:
    return ", ".join(available_devices())


def _forward(device: str) -> str:
    spec = PolicySpec(row_size=8, lookback=2, state_size=4, action="box", action_size=3, hidden=(16,))
    policy = ActorCritic(spec, (0,)).to(device)
    out = policy.mode(torch.randn(1, 5, spec.size, device=device))
    if out.shape != (1, 5, 3) or not bool(out.isfinite().all()):
        raise RuntimeError(f"the policy gave {tuple(out.shape)}, finite: {bool(out.isfinite().all())}")
    return f"actions {tuple(out.shape)}, finite"


def _data() -> str:
    return load_bars("sample").description


def _rollout() -> str:
    market = Market.from_bars(load_bars("sample"))
    env = build_env(default_env(market).__name__, market, 2, seed=0)
    agent = AgentPPO(PolicySpec.of(env, hidden=(8,)), PPOConfig(horizon_len=2, num_minibatches=1, update_epochs=1))
    agent.policy.fit_normalizer(env)
    reward = agent.explore_env(env, 2).reward
    if not bool(reward.isfinite().all()):
        raise RuntimeError("rewards are not finite")
    return f"{tuple(reward.shape)} rewards, mean {np.mean(reward.numpy()):.3g}"


def _storage(logs: Path, study_storage: Callable[[Path], str]) -> str:
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=logs) as folder:
        return study_storage(Path(folder))
