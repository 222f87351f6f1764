"""A model of the door as a script of stable-baselines3's handles it: its environment, its policy, its arguments."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch

from drl_agents.compat.sb3 import PPO
from drl_agents.compat.sb3_policy import MlpPolicy
from drl_agents.compat.sb3_view import Alone
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.observation import build_observation

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra: test)")

import stable_baselines3
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

pytestmark = pytest.mark.usefixtures("one_thread")


def short() -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, seed=3)


def market_env() -> VectorizedCryptoEnvAlpaca:
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 300, "n_assets": 2}, seed=1))
    return VectorizedCryptoEnvAlpaca(market, 4, lookback=3, episode_length=5, seed=0)


def test_the_quickstart():
    """https://stable-baselines3.readthedocs.io/en/master/guide/quickstart.html, without the window."""
    env = gymnasium.make("CartPole-v1")

    model = PPO("MlpPolicy", env, verbose=0, n_steps=64)
    model.learn(total_timesteps=100)

    vec_env = model.get_env()
    obs = vec_env.reset()
    for _ in range(50):
        action, _states = model.predict(obs, deterministic=True)
        obs, reward, done, info = vec_env.step(action)
    assert obs.shape == (1, 4) and reward.shape == done.shape == (1,) and len(info) == 1
    assert vec_env is model.get_env() and isinstance(vec_env, VecEnv) and vec_env.envs[0].unwrapped is env.unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of an environment that is not wrapped with a Monitor
        mean, _ = evaluate_policy(model, model.get_env(), 3)
    assert mean > 5
    model.learn(128)  # goes on, although its environment was moved


@pytest.mark.parametrize("given", ["CartPole-v1", gymnasium.make("Pendulum-v1"), make_vec_env("CartPole-v1", 2)])
def test_callbacks_that_ask_for_the_environment(given):
    model = PPO("MlpPolicy", given, n_steps=64)
    n_envs = model.get_env().num_envs
    evaluation = EvalCallback(model.get_env(), eval_freq=64, n_eval_episodes=1, verbose=0)
    model.learn(64 * n_envs, callback=evaluation)
    assert evaluation.last_mean_reward != -np.inf
    stop = StopTrainingOnMaxEpisodes(2)
    model.learn(10_000, callback=stop)
    assert stop.n_episodes >= 2 * n_envs
    assert model.num_timesteps < 10_000


@pytest.mark.parametrize("installed", [True, False])
def test_an_environment_of_ours_has_their_interface(installed, monkeypatch):
    """The same numbers as the environment itself, with or without the package."""
    if not installed:
        monkeypatch.setattr("drl_agents.compat.sb3_view._base", lambda: Alone)
    model = PPO("MlpPolicy", market_env(), n_steps=8, batch_size=8, seed=0)
    view, twin = model.get_env(), market_env()
    assert isinstance(view, VecEnv) == installed
    assert (view.num_envs, view.observation_space, view.action_space) == (
        4, twin.single_observation_space, twin.single_action_space,
    )  # fmt: skip
    view.seed(3)
    seen_now, own = view.reset(), twin.reset(3)
    for t in range(7):
        dense = build_observation(twin.rows, own, twin.lookback)
        np.testing.assert_array_equal(seen_now, dense.numpy())
        action, _ = model.predict(seen_now, deterministic=True)
        seen_now, reward, done, infos = view.step(action)
        step = twin.step(torch.from_numpy(action))
        own = step.observation
        np.testing.assert_array_equal(reward, step.reward.numpy())
        assert done.all() == (t == 4) == all("terminal_observation" in info for info in infos)
    assert infos[0] == {"TimeLimit.truncated": False} and view.get_attr("n_envs", [0, 1]) == [4, 4]
    # A single environment too, in its own units.
    single = PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, seed=0)
    view = single.get_env()
    view.seed(1)
    first = view.reset()
    found = view.step(np.array([[-2.0]], dtype=np.float32))[0]
    env = gymnasium.make("Pendulum-v1")
    np.testing.assert_allclose(first[0], env.reset(seed=1)[0])
    np.testing.assert_allclose(found[0], env.step(np.array([-2.0], dtype=np.float32))[0], rtol=1e-6)


def test_a_policy_by_its_class_predicts():
    model = PPO(stable_baselines3.ppo.MlpPolicy, "CartPole-v1", n_steps=16, batch_size=16)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        model.policy.predict(x, deterministic=True)[0], model.predict(x, deterministic=True)[0]
    )
    assert PPO(MlpPolicy, None).get_env() is None
    own = model.get_parameters()
    assert own.keys() == {"policy", "policy.optimizer"} and own["policy"].keys() == model.policy.state_dict().keys()
    assert sum(p.numel() for p in model.policy.parameters()) > 1000


def test_a_progress_bar(capsys):
    short().learn(512, progress_bar=True)
    assert "512/512" in capsys.readouterr().out
    short().learn(256)
    assert capsys.readouterr().out == ""


def test_arguments_of_learn_and_load(tmp_path, capsys):
    model = short()
    with pytest.raises(InputError, match="learn has no argument total_timestep; the nearest is total_timesteps"):
        model.learn(64, total_timestep=64)
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="load has no argument gammma; the nearest is gamma"):
        PPO.load(tmp_path / "model", gammma=0.5)
    changed = {"learning_rate": 0.0, "lr_schedule": lambda remaining: 0.0, "clip_range": 0.1}
    loaded = PPO.load(tmp_path / "model", custom_objects=changed, print_system_info=True, clip_range=0.3)
    assert (loaded.learning_rate, loaded.clip_range) == (0.0, 0.3) and "torch: " in capsys.readouterr().out
