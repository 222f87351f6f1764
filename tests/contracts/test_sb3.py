"""stable-baselines3 as an outside learner: its checker accepts the environments, its PPO trains on them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from environments.alpaca_env import CryptoEnvAlpaca, StockEnvAlpaca, VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.gymnasium_vector import GymnasiumVectorView
from environments.market import Market

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra: test)")

from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecEnv


class SB3View(VecEnv):
    """A Gymnasium vector environment with SAME_STEP resets, as stable-baselines3 wants one.

    The two differ in names only: done for the two flags, and in each environment's own info "terminal_observation"
    and "TimeLimit.truncated".
    """

    def __init__(self, envs: GymnasiumVectorView) -> None:
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self):
        observation, _ = self.envs.reset(seed=self._seeds[0])
        self._reset_seeds()
        return observation

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        observation, reward, terminated, truncated, infos = self.envs.step(self.actions)
        done = terminated | truncated
        own = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            own[i] = {"terminal_observation": infos["final_obs"][i], "TimeLimit.truncated": bool(truncated[i])}
        return observation, reward.astype(np.float32), done, own

    def close(self):
        self.envs.close()

    def get_attr(self, attr_name, indices=None):
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        raise AttributeError(f"{attr_name}: the environments share one object, attributes cannot be set alone")

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        raise AttributeError(f"{method_name}: the environments share one object, there is no method of one alone")

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False for _ in self._get_indices(indices)]


@pytest.mark.parametrize("cls,asset_class", [(CryptoEnvAlpaca, "crypto"), (StockEnvAlpaca, "stock")])
@pytest.mark.parametrize("scheme", ["trades", "weights"])
def test_its_checker_accepts_the_single_environments(cls, asset_class, scheme, make_market, random_bars):
    bars = {"A": random_bars(1, 120), "B": random_bars(2, 120, missing=0.1, listed=15)}
    env = cls(make_market(bars, asset_class=asset_class), episode_length=30, action=scheme, lookback=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    assert [str(w.message) for w in caught] == []


def test_its_ppo_learns_on_the_vectorised_environment():
    """10,000 steps on a market with a strong visible signal: the trained policy earns where the first one did not."""
    options = {"kind": "signal", "n_bars": 1_500, "n_assets": 1, "ic": 0.5, "rho": 0.5}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=1))
    core = VectorizedCryptoEnvAlpaca(
        market, 10, segments=[(0, 1_000)], episode_length=100, features=("signal",), reward="log_return",
        action="weights", commission_bps=0.0, spread_bps=0.0, slippage_bps=0.0, impact_coef=0.0,
    )  # fmt: skip
    envs = SB3View(GymnasiumVectorView(core))
    torch.manual_seed(0)
    model = PPO(
        "MlpPolicy", envs, n_steps=100, batch_size=250, n_epochs=8, learning_rate=3e-3, gamma=0.5, seed=3,
        policy_kwargs={"net_arch": [16]}, device="cpu",
    )  # fmt: skip

    def earned() -> float:
        """Mean log return per bar on bars that were not trained on, acting on the mean of the policy."""
        test = VectorizedCryptoEnvAlpaca(
            market, 1, segments=[(1_000, 1_500)], random_start=False, episode_length=None, features=("signal",),
            reward="log_return", action="weights", commission_bps=0.0, spread_bps=0.0, slippage_bps=0.0,
            impact_coef=0.0,
        )  # fmt: skip
        walk = GymnasiumVectorView(test)
        observation, _ = walk.reset()
        for steps in range(1, 600):
            observation, _, _, truncated, infos = walk.step(model.predict(observation, deterministic=True)[0])
            if truncated[0]:
                return float(np.log(infos["final_info"]["equity"][0] / 100_000.0)) / steps
        raise AssertionError("the walk did not end")

    before = earned()
    model.learn(10_000)
    after = earned()
    assert model.num_timesteps == 10_000
    best = market.planted["optimal_log_return_per_bar"]
    print(f"log return per bar as a share of the best: {before / best:+.2f} before, {after / best:+.2f} after")
    assert after > 0.6 * best > before
