"""A package outside the repository adds an environment, a source and an action scheme, and is trained on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MODULE = '''
from dataclasses import dataclass

import gymnasium
import numpy as np

from environments.actions import ActionScheme, units_toward, to_orders
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars


class QuietCryptoEnv(VectorizedCryptoEnvAlpaca):
    """Vectorised: its constructor names n_envs."""


class Thermostat(gymnasium.Env):
    """Single: it does not, and is run N times."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, patience=5):
        self.patience = patience

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.patience
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.full(1, 0.1 * self.left, np.float32), float(action), False, self.left == 0, {}


class Doubled:
    name = "doubled"

    def load(self, request):
        return load_bars("synthetic", seed=request.seed or 0, options={"kind": "gbm", "n_bars": 400, "n_assets": 2})


@dataclass(frozen=True)
class AllIn(ActionScheme):
    """Box(1): everything into equal weight above 0, out of it below."""

    share: float = 0.9
    name = "all_in"

    def space(self, n_assets):
        return gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def orders(self, action, account, equity, mark, judged, rules, row=None):
        weights = judged.double() / judged.sum(-1, keepdim=True).clamp(min=1) * (action > 0) * self.share
        return to_orders(units_toward(weights, account, equity, mark, judged), account, mark, judged, rules)
'''
ENTRY_POINTS = """
[drl_agents.envs]
quiet = outside_package:QuietCryptoEnv
thermostat = outside_package:Thermostat

[drl_agents.sources]
doubled = outside_package:Doubled

[drl_agents.actions]
all_in = outside_package:AllIn
"""
USE = """
from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.adapters import GymnasiumVecEnv
from environments.checker import check_env
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.plugin import build_env

market = Market.from_bars(load_bars("doubled", seed=3))
env = build_env("quiet", market, 4, seed=0, action="all_in", action_options={"share": 0.5}, episode_length=50)
assert type(env).__name__ == "QuietCryptoEnv" and env.scheme.share == 0.5
single = build_env("thermostat", None, 3, patience=4)
assert isinstance(single, GymnasiumVecEnv) and len(single.envs) == 3
for one in (env, single):
    check_env(one)
    agent = AgentPPO(PolicySpec.of(one, hidden=(8,)), PPOConfig(horizon_len=16, num_minibatches=1))
    agent.policy.fit_normalizer(one)
    assert train(agent, one, Budget(iterations=3)).iterations == 3
for options, accepted in (({"patiense": 4}, "patience"),):
    try:
        build_env("thermostat", None, 1, **options)
    except InputError as error:
        assert accepted in str(error) and "patiense" in str(error)
    else:
        raise AssertionError("an unknown option was taken")
print("trained")
"""


def test_an_outside_package_is_found_and_trained_on(tmp_path):
    (tmp_path / "outside_package.py").write_text(MODULE)
    info = tmp_path / "outside_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{USE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "trained", done.stderr
