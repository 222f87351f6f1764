"""Every environment keeps its contract; a broken one is caught; plug-ins are found and checked."""

from __future__ import annotations

import warnings
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from environments.adapters import GymnasiumVecEnv
from environments.alpaca_env import (
    CryptoEnvAlpaca,
    StockEnvAlpaca,
    VectorizedCryptoEnvAlpaca,
    VectorizedStockEnvAlpaca,
    default_env,
)
from environments.checker import EnvError, check_env, random_actions
from environments.errors import InputError
from environments.observation import Observation
from environments.plugin import BUILT_IN, build_env, find_env, is_vectorized
from environments.vec_env import Step, VecEnv


@pytest.fixture(scope="module")
def crypto(make_market, random_bars):
    bars = {
        "BTC/USD": random_bars(1, 160, price=30_000.0),
        "ETH/USD": random_bars(2, 160, missing=0.1, listed=20),
    }
    return make_market(bars, asset_class="crypto")


@pytest.fixture(scope="module")
def stock(make_market, random_bars):
    bars = {"AAPL": random_bars(3, 160), "MSFT": random_bars(4, 160, price=250.0, idle=0.05)}
    return make_market(bars, asset_class="stock", timeframe="5m")


@pytest.fixture
def market(request, crypto, stock):
    return {"crypto": crypto, "stock": stock}[request.param]


EACH = [(name, "crypto" if "Crypto" in name else "stock") for name in BUILT_IN]


# --------------------------------------------------------------------------------------------- built-ins


@pytest.mark.parametrize("scheme", ["trades", "weights"])
@pytest.mark.parametrize("cls,market", [(CryptoEnvAlpaca, "crypto"), (StockEnvAlpaca, "stock")], indirect=["market"])
def test_single_environments_are_gymnasiums(cls, market, scheme):
    env = cls(market, episode_length=40, action=scheme, lookback=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(env, skip_render_check=True)
    # The checker says of unbounded observations that they are; of an environment without a spec, that too.
    harmless = ("infinity", "spec")
    left = [str(w.message) for w in caught if not any(text in str(w.message) for text in harmless)]
    assert not left


@pytest.mark.parametrize("n_envs", [1, 5])
@pytest.mark.parametrize("name,market", EACH, indirect=["market"])
def test_built_ins_keep_the_contract(name, market, n_envs):
    env = build_env(name, market, n_envs, episode_length=17, lookback=4, decision_lag=2)
    assert isinstance(env, VecEnv) and env.n_envs == n_envs
    check_env(env, steps=120)


def test_built_in_with_members_keeps_the_contract(crypto):
    check_env(build_env("VectorizedCryptoEnvAlpaca", crypto, 6, n_members=3, action="weights", reward="log_return"))


def test_single_and_vectorised_are_one_world(crypto):
    """The single environment, reset when it says so, lives through what a vectorised one of 1 does."""
    options = dict(episode_length=15, seed=3, lookback=2)
    single, vectorised = CryptoEnvAlpaca(crypto, **options), VectorizedCryptoEnvAlpaca(crypto, 1, **options)
    generator = torch.Generator().manual_seed(0)
    seen, info = single.reset()
    assert info["bar"] == int(vectorised.bar)
    for _ in range(60):
        action = random_actions(vectorised, generator)
        seen, reward, terminated, truncated, info = single.step(action[0].numpy())
        step = vectorised.step(action)
        assert (reward, terminated, truncated) == (
            float(step.reward),
            bool(step.terminated),
            bool(step.truncated),
        )
        assert info["bar"] == int(step.final_observation.bar) and info["equity"] == float(vectorised.last_equity)
        assert np.array_equal(seen[-7:], step.final_observation.state[0].numpy())
        if terminated or truncated:
            _, info = single.reset()
            assert info["bar"] == int(vectorised.bar)


def test_reset_in_the_middle_forgets_everything(crypto):
    env = CryptoEnvAlpaca(crypto, episode_length=50, decision_lag=3)
    first, info = env.reset(seed=5)
    rewards = [env.step(np.ones(2, dtype=np.float32))[1] for _ in range(20)]
    again, info_again = env.reset(seed=5)
    assert np.array_equal(first, again) and info == info_again
    assert rewards == [env.step(np.ones(2, dtype=np.float32))[1] for _ in range(20)]
    env.reset()
    assert float(env.core.equity) == 100_000.0 and not env.core.pending.any() and not env.core.account.shares.any()


def test_environments_know_their_market(crypto, stock):
    with pytest.raises(InputError, match="trades stock, the market is crypto"):
        VectorizedStockEnvAlpaca(crypto, 2)
    with pytest.raises(InputError, match="trades crypto, the market is stock"):
        CryptoEnvAlpaca(stock)
    assert default_env(crypto) is VectorizedCryptoEnvAlpaca and default_env(stock) is VectorizedStockEnvAlpaca
    assert VectorizedCryptoEnvAlpaca(crypto, 1).frictions.commission_bps == 25.0
    assert StockEnvAlpaca(stock).core.frictions.commission_bps == 0.0


# --------------------------------------------------------------------------------------------- Gymnasium


def test_cartpole_through_the_adapter():
    env = GymnasiumVecEnv(lambda: gymnasium.make("CartPole-v1"), 3, seed=2)
    check_env(env)
    env.close()


def test_the_adapter_resets_in_the_same_step():
    """A pole pushed one way falls within 12 steps: its last state is kept, the next one is a fresh start."""
    env = build_env("gym:CartPole-v1", None, 2, seed=1)
    env.reset()
    for _ in range(12):
        step = env.step(torch.ones(2, dtype=torch.int64))
        if step.terminated.any():
            break
    fell = step.terminated
    assert fell.any() and not step.truncated.any()
    assert (step.final_observation.state[fell, 2].abs() > 0.2).all()
    assert (step.observation.state[fell].abs() <= 0.05).all()


def test_the_adapter_truncates_and_stretches_actions():
    env = build_env("gym:Pendulum-v1", None, 1)
    env.reset(0)
    assert env.single_action_space.low.item() == -1.0
    own = gymnasium.make("Pendulum-v1")
    own.reset(seed=0)
    step = env.step(torch.tensor([[0.5]]))
    _, reward, *_ = own.step(np.array([1.0], dtype=np.float32))  # its torque is within +-2
    assert float(step.reward) == pytest.approx(reward)
    flags = [bool(env.step(torch.zeros(1, 1)).truncated) for _ in range(199)]
    assert flags == [False] * 198 + [True]


def test_a_reset_without_a_seed_goes_on_drawing():
    env = GymnasiumVecEnv(lambda: gymnasium.make("CartPole-v1"), 2, seed=7)
    first = env.reset().state.clone()
    second = env.reset().state.clone()
    assert not torch.equal(first, second)
    assert torch.equal(env.reset(7).state, first)


# ---------------------------------------------------------------------------------------------- plug-ins


class Counter(gymnasium.Env):
    """A single environment that names its options; counts how often one was made."""

    made: ClassVar[int] = 0
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, market, limit: int = 5):
        type(self).made += 1
        self.market, self.limit, self.count = market, limit, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.count += 1
        seen = np.array([self.count, action], dtype=np.float32)
        return seen, float(action), False, self.count >= self.limit, {}


class Drift(VecEnv):
    """A small correct vectorised environment, to break in one place at a time."""

    def __init__(self, n_envs: int, seed: int = 0):
        self.n_envs, self.device, self.state_size = n_envs, torch.device("cpu"), 2
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.generator = torch.Generator()
        self.reset(seed)

    def fresh(self):
        return torch.cat([torch.randn(self.n_envs, 1, generator=self.generator), torch.zeros(self.n_envs, 1)], dim=1)

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state = self.fresh()
        return Observation(None, self.state)

    def step(self, action):
        final = self.state + torch.cat([action, torch.ones_like(action)], dim=1)
        terminated = final[:, 0].abs() > 3
        truncated = (final[:, 1] >= 9) & ~terminated
        self.state = torch.where((terminated | truncated).unsqueeze(1), self.fresh(), final)
        return Step(Observation(None, self.state), -final[:, 0].abs(), terminated, truncated, Observation(None, final))

    def state_dict(self):
        return {"state": self.state.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.state = state["state"].clone()
        self.generator.set_state(state["generator"])


def altered(change) -> type[Drift]:
    """Drift with every step passed through `change`."""

    class Altered(Drift):
        def step(self, action):
            return change(super().step(action))

    return Altered


class IgnoresSeed(Drift):
    def reset(self, seed=None):
        self.state = self.fresh()
        return Observation(None, self.state)


class ForgetsGenerator(Drift):
    def load_state_dict(self, state):
        self.state = state["state"].clone()


class WrongSpace(Drift):
    def __init__(self, n_envs: int):
        super().__init__(n_envs)
        self.single_observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)


class NamesBars(Drift):
    def reset(self, seed=None):
        return super().reset(seed)._replace(bar=torch.zeros(self.n_envs, dtype=torch.int64))


BROKEN = {
    "seed": IgnoresSeed,
    "restored": ForgetsGenerator,
    "single_observation_space": WrongSpace,
    "bar is None": NamesBars,
    "float32": altered(lambda s: s._replace(reward=s.reward.double())),
    "rewards are finite": altered(lambda s: s._replace(reward=s.reward / 0)),
    "one way": altered(lambda s: s._replace(terminated=s.terminated | s.truncated)),
    "no episode ends": altered(lambda s: s._replace(final_observation=Observation(None, s.observation.state + 1))),
    "bool": altered(lambda s: s._replace(truncated=s.truncated.float())),
    "states are finite": altered(lambda s: s._replace(observation=Observation(None, s.observation.state * torch.nan))),
    "state is": altered(lambda s: s._replace(observation=Observation(None, s.observation.state[:, :1]))),
}


def test_a_correct_environment_passes():
    check_env(Drift(4))
    check_env(build_env(Drift, None, 1, seed=3))


@pytest.mark.parametrize("rule", BROKEN)
def test_broken_environments_are_caught(rule):
    with pytest.raises(EnvError, match=rule):
        check_env(BROKEN[rule](4))


def test_what_is_no_vecenv_is_caught():
    with pytest.raises(EnvError, match="not a VecEnv"):
        check_env(gymnasium.make("CartPole-v1"))


def test_a_single_constructor_is_run_n_times(crypto):
    before = Counter.made
    env = build_env(Counter, crypto, 4, limit=3)
    assert not is_vectorized(Counter) and Counter.made == before + 4
    assert all(own.market is crypto and own.limit == 3 for own in env.envs)
    check_env(env, steps=30)
    env.reset(0)
    ends = [env.step(torch.ones(4, dtype=torch.int64)).truncated.tolist() for _ in range(6)]
    assert ends == [[False] * 4, [False] * 4, [True] * 4] * 2


def test_a_class_by_its_path(crypto):
    env = build_env("environments.alpaca_env:VectorizedCryptoEnvAlpaca", crypto, 2, lookback=2)
    assert type(env) is VectorizedCryptoEnvAlpaca and env.lookback == 2
    assert find_env("gymnasium.envs.classic_control:CartPoleEnv").__name__ == "CartPoleEnv"


@pytest.mark.parametrize("name", EACH, ids=lambda pair: pair[0])
def test_unknown_options_are_refused_with_the_accepted_ones(name, crypto, stock):
    with pytest.raises(InputError, match=r"no option looback: accepted are .*lookback.*fill_at") as error:
        build_env(name[0], crypto if name[1] == "crypto" else stock, 2, looback=3)
    assert "\n" not in str(error.value) and "self" not in str(error.value)


def test_unknown_options_of_plug_ins_are_refused(crypto):
    with pytest.raises(InputError, match=r"no option limits: accepted are limit$"):
        build_env(Counter, crypto, 1, limits=3)
    with pytest.raises(InputError, match="needs a market"):
        build_env(Counter, None, 1)
    with pytest.raises(InputError, match="n_envs=0"):
        build_env(Counter, crypto, 0)


@pytest.mark.parametrize(
    "name,accepted",
    [
        ("CryptoEnv", "VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca, CryptoEnvAlpaca, StockEnvAlpaca"),
        ("environments.alpaca_env:Missing", "Missing"),
        ("no_such_package.module:Class", "no_such_package"),
        ("gym:CartPole-v9", "CartPole-v1"),
    ],
)
def test_unknown_names_are_answered(name, accepted):
    with pytest.raises(InputError, match=accepted) as error:
        build_env(name, None, 1)
    assert name in str(error.value) and "\n" not in str(error.value)
