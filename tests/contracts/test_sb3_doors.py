"""The door to stable-baselines3, against the real package: its scripts run, files go both ways."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from drl_agents.agents.ppo import AgentPPO
from drl_agents.agents.registry import build_agent
from drl_agents.compat.sb3 import PPO
from drl_agents.compat.sb3_zip import export_sb3, import_sb3
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.gymnasium_vector import GymnasiumVectorView
from environments.market import Market

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra: test)")

import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("Pendulum-v1", "CartPole-v1")


def short(name: str, **options) -> PPO:
    env = make_vec_env(name, n_envs=4, seed=0)
    return PPO("MlpPolicy", env, **{"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 3, **options})


def seen(name: str, n: int = 200) -> np.ndarray:
    """Observations as an untrained policy meets them."""
    env = gymnasium.make(name)
    env.action_space.seed(0)
    rows, _ = [env.reset(seed=0)[0]], None
    while len(rows) < n:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        rows.append(env.reset()[0] if terminated or truncated else observation)
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kwargs", [{}, {"net_arch": {"pi": [16, 8], "vf": [16, 8]}, "activation_fn": nn.ReLU}])
def test_its_own_load_gives_the_same_actions(tmp_path, name, kwargs):
    model = short(name, policy_kwargs=kwargs).learn(1024)
    other = stable_baselines3.PPO.load(model.export_sb3(tmp_path / "model"))
    x = seen(name)
    ours, theirs = (m.predict(x, deterministic=True)[0] for m in (model, other))
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6 * 2)  # Pendulum's actions are within +-2
    assert len(np.unique(ours)) > 1
    value = other.policy.predict_values(torch.as_tensor(x)).flatten()
    torch.testing.assert_close(value, model.policy.value(torch.as_tensor(x)[None])[0], rtol=1e-5, atol=1e-4)
    # What it does at random is drawn from the same distribution.
    if name == "Pendulum-v1":
        assert other.policy.log_std.exp().item() == pytest.approx(2 * model.policy.log_std.exp().item(), rel=1e-6)
    assert other.n_steps == 64 and other.gamma == 0.99


@pytest.mark.parametrize("name", NAMES)
def test_its_models_come_in_without_unpickling(tmp_path, name, monkeypatch):
    env = make_vec_env(name, n_envs=2, seed=0)
    theirs = stable_baselines3.PPO("MlpPolicy", env, n_steps=64, seed=1).learn(512)
    theirs.save(tmp_path / "theirs")

    def refuse(*ignored, **also):
        raise AssertionError("unpickled")

    with monkeypatch.context() as patch:
        for name_ in ("loads", "load"):
            patch.setattr(f"pickle.{name_}", refuse)
            patch.setattr(f"cloudpickle.{name_}", refuse)
        model = PPO.load(tmp_path / "theirs")
    x = seen(name)
    np.testing.assert_allclose(
        model.predict(x, deterministic=True)[0], theirs.predict(x, deterministic=True)[0], rtol=0, atol=2e-6
    )
    again = stable_baselines3.PPO.load(model.export_sb3(tmp_path / "again.zip"))
    np.testing.assert_allclose(
        again.predict(x, deterministic=True)[0], theirs.predict(x, deterministic=True)[0], rtol=0, atol=4e-6
    )
    model.set_env(env)
    assert model.learn(256).num_timesteps >= 256


def test_its_models_go_on_learning_as_they_were(tmp_path, caplog):
    """The weights are of observations as they are, however large: no normaliser moves in front of them."""
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    options = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "gamma": 0.9, "clip_range": 0.1, "target_kl": 0.05}
    theirs = stable_baselines3.PPO("MlpPolicy", env, learning_rate=lambda remaining: 1e-3 * remaining, **options)
    theirs.learn(256).save(tmp_path / "theirs")
    model = PPO.load(tmp_path / "theirs", env)
    assert {name: getattr(model, name) for name in options} == options
    assert "its learning_rate is a schedule" in caplog.text and caplog.text.count("schedule") == 1
    caplog.clear()
    model = PPO.load(tmp_path / "theirs", env, learning_rate=0.0)
    assert not caplog.text
    x = 100 * seen("Pendulum-v1")
    expected = theirs.predict(x, deterministic=True)[0]
    np.testing.assert_allclose(model.predict(x, deterministic=True)[0], expected, rtol=0, atol=1e-5)
    model.learn(256)  # nothing is learned at this rate
    np.testing.assert_allclose(model.predict(x, deterministic=True)[0], expected, rtol=0, atol=1e-5)
    model.save(tmp_path / "ours")
    again = PPO.load(tmp_path / "ours")
    np.testing.assert_allclose(again.predict(x, deterministic=True)[0], expected, rtol=0, atol=1e-5)


def test_a_seed_reaches_its_environments():
    means = []
    for seed in (7, 7, 8):
        env = DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])
        model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=seed).learn(16)
        means.append(model.policy.state_normalizer.mean.tolist())
    assert means[0] == means[1] != means[2]


class FromFive(gymnasium.Env):
    """Its choices are 5, 6 and 7."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(3, start=5)


def test_choices_that_do_not_begin_at_zero_are_refused():
    with pytest.raises(InputError, match="a Discrete from 0, not Discrete\\(3, start=5\\)"):
        PPO("MlpPolicy", DummyVecEnv([FromFive]))


def test_what_its_ppo_has_no_place_for_stays_here(tmp_path):
    spec = PolicySpec(0, 1, 3, "box", 1, (8,))
    sac = build_agent("sac", spec)
    with pytest.raises(InputError, match="with no critic of states: .* accepted are models of ppo, a2c, shac and dqn"):
        export_sb3(tmp_path / "sac", sac.policy)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "action"), [("a2c", "discrete"), ("shac", "box"), ("dqn", "discrete")])
def test_agents_with_an_actor_and_a_critic_of_states_go_out(tmp_path, name, action):
    agent = build_agent(name, PolicySpec(0, 1, 3, action, 2, (8,)))
    with torch.no_grad():
        agent.policy.actor.layers[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    other = stable_baselines3.PPO.load(export_sb3(tmp_path / name, agent.policy))
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    ours = agent.policy.mode(torch.from_numpy(x)[None])[0].detach().numpy()
    ours = ours.clip(-1, 1) if action == "box" else ours
    np.testing.assert_allclose(other.predict(x, deterministic=True)[0], ours, rtol=0, atol=1e-6)


def market_env(n_members: int = 1, **options) -> VectorizedCryptoEnvAlpaca:
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 300, "n_assets": 2}, seed=1))
    return VectorizedCryptoEnvAlpaca(market, 4, n_members=n_members, lookback=3, **options)


def test_a_market_policy_goes_out(tmp_path, caplog):
    env = market_env(2, episode_length=50, seed=[1, 2])
    agent = AgentPPO(PolicySpec.of(env, hidden=(16,)), seeds=(1, 2))
    agent.policy.fit_normalizer(env)
    view = GymnasiumVectorView(env)
    x, _ = view.reset(seed=0)
    for member in (0, 1):
        other = stable_baselines3.PPO.load(export_sb3(tmp_path / f"{member}.zip", agent.policy, member=member))
        assert other.action_space == env.single_action_space
        ours = agent.policy.mode(torch.as_tensor(x).expand(2, -1, -1))[member].detach()
        found = other.predict(x, deterministic=True)[0]
        np.testing.assert_allclose(found, ours.clamp(-1, 1).numpy(), rtol=0, atol=1e-6)
        assert f"{member}.zip: observations are limited to 10 standard deviations" in caplog.text
    # What the file cannot hold in 32 bits is seen when it is read back.
    agent.policy.row_normalizer.mean.fill_(1e6)
    with pytest.raises(InputError, match="the exported actor differs by .*, at most 1e-05 is accepted"):
        export_sb3(tmp_path / "far.zip", agent.policy)
    assert not (tmp_path / "far.zip").exists()


@pytest.mark.parametrize("name", NAMES)
def test_its_own_load_agrees_far_from_what_was_seen(tmp_path, name, caplog):
    model = short(name).learn(256)
    other = stable_baselines3.PPO.load(model.export_sb3(tmp_path / "model"))
    x = 1000 * seen(name)
    ours, theirs = (m.predict(x, deterministic=True)[0] for m in (model, other))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-6)
    assert "limited" not in caplog.text
    model.save(tmp_path / "own")
    np.testing.assert_array_equal(PPO.load(tmp_path / "own").predict(x, deterministic=True)[0], ours)


class Counting(BaseCallback):
    """Counts steps and rollouts; stops after `stop` steps."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.steps, self.rollouts, self.ended = stop, 0, 0, 0

    def _on_rollout_end(self) -> None:
        self.rollouts += 1

    def _on_training_end(self) -> None:
        self.ended += 1

    def _on_step(self) -> bool:
        self.steps += 1
        assert self.locals["infos"] is not None and self.num_timesteps == self.model.num_timesteps
        return self.stop is None or self.steps < self.stop


def test_its_callbacks_run(tmp_path):
    model, counting = short("CartPole-v1"), Counting()
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1), eval_freq=100, n_eval_episodes=2, log_path=str(tmp_path), verbose=0,
        best_model_save_path=str(tmp_path / "best"),
    )  # fmt: skip
    model.learn(512, callback=[counting, evaluation, CheckpointCallback(64, str(tmp_path / "kept"))])
    assert (counting.steps, counting.rollouts, counting.ended) == (128, 2, 1) and model.num_timesteps == 512
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (1, 2)
    assert PPO.load(tmp_path / "best" / "best_model").num_timesteps == 400
    assert sorted(p.name for p in (tmp_path / "kept").glob("*")) == ["rl_model_256_steps.zip", "rl_model_512_steps.zip"]
    assert model.ep_info_buffer[0].keys() >= {"r", "l"}


def test_a_callback_stops_training():
    model, stopping = short("CartPole-v1"), Counting(stop=70)
    model.learn(10_000, callback=stopping)
    assert (stopping.steps, stopping.rollouts, stopping.ended) == (70, 1, 1)
    assert short("CartPole-v1").learn(10_000, callback=lambda local, world: False).num_timesteps == 4


def test_saved_and_loaded_it_goes_on_as_it_would_have(tmp_path):
    model = short("Pendulum-v1").learn(512)
    model.save(tmp_path / "own")
    x = seen("Pendulum-v1")
    loaded = PPO.load(tmp_path / "own", make_vec_env("Pendulum-v1", n_envs=4))
    assert (loaded.predict(x, deterministic=True)[0] == model.predict(x, deterministic=True)[0]).all()
    assert loaded.num_timesteps == 512 and loaded.learn(256, reset_num_timesteps=False).num_timesteps == 768
    one, state = loaded.predict(x[0], deterministic=True)
    assert one.shape == (1,) and state is None
    assert PPO.load(tmp_path / "own", gamma=0.5).gamma == 0.5


def test_predict_explores_unless_told_and_stays_in_bounds():
    model = short("Pendulum-v1", policy_kwargs={"log_std_init": 1.0})
    x = np.repeat(seen("Pendulum-v1", 1), 2000, axis=0)
    drawn = model.predict(x)[0]
    assert drawn.min() == -2 and drawn.max() == 2 and 0.5 < drawn.std() < 2
    assert model.predict(x, deterministic=True)[0].std() < 1e-6


def test_schedules_are_followed():
    asked = []
    model = short("CartPole-v1", learning_rate=lambda remaining: asked.append(remaining) or 1e-3 * remaining)
    model.learn(1024)
    assert asked[-4:] == [1.0, 0.75, 0.5, 0.25]
    assert model.agent.hyper["learning_rate"].item() == pytest.approx(2.5e-4)


def test_a_script_that_says_stable_baselines3_runs_on_ours():
    script = (
        "from drl_agents.compat.sb3 import replace_sb3\nreplace_sb3()\nfrom stable_baselines3 import PPO\n"
        "print(PPO('MlpPolicy', 'CartPole-v1', n_steps=64, n_epochs=1).learn(128).agent.__class__.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["stable_baselines3.PPO is now drl_agents.compat.sb3.PPO", "AgentPPO"], (
        done.stderr
    )


def test_learns_cartpole_with_its_defaults_shortened():
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), n_steps=128, batch_size=256, seed=0)
    mean, _ = evaluate_policy(model.learn(25_000), make_vec_env("CartPole-v1", 1, seed=7), 5)
    assert mean > 100  # an untrained policy balances for about 20 steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "CnnPolicy"}, "accepted is 'MlpPolicy'"),
        ({"use_sde": True}, "use_sde: not available here"),
        ({"env": "CartPole-v99"}, "CartPole-v99"),
        ({"env": 3}, "environment int: accepted are"),
        ({"batch_size": 4096}, "batch_size=4096: accepted are 2 to n_steps"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [9]}}}, "pi and vf must have the same layers"),
        ({"policy_kwargs": {"activation_fn": nn.ELU}}, "activation_fn ELU: accepted are Tanh, ReLU"),
        ({"policy_kwargs": {"lstm": 1}}, "policy_kwargs lstm: accepted are"),
        ({"policy_kwargs": {"ortho_init": False}}, "weights start orthogonal"),
        ({"policy_kwargs": {"net_arch": []}}, r"net_arch \[\]: at least one layer"),
        ({"policy_kwargs": {"net_arch": [{"pi": [8], "vf": [8]}]}}, "each a whole number of units"),
        ({"policy": BaseCallback}, "policy BaseCallback: accepted is 'MlpPolicy'"),
        ({"gama": 0.9}, "PPO has no argument gama; the nearest is gamma"),
        ({"_init_setup_model": False}, "_init_setup_model: not available here, leave it at its default"),
    ],
)
def test_what_is_not_here_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        PPO(**{"policy": "MlpPolicy", "env": "CartPole-v1", "n_steps": 64, **options})


def test_files_that_are_not_models_are_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InputError, match="no such file"):
        PPO.load(tmp_path / "none")
    with pytest.raises(InputError, match="not a model"):
        PPO.load(tmp_path / "text.zip")
    with pytest.raises(InputError, match="not a model of stable-baselines3"):
        import_sb3(tmp_path / "text.zip")
    sde = stable_baselines3.PPO("MlpPolicy", "Pendulum-v1", n_steps=64, use_sde=True)
    sde.save(tmp_path / "sde")
    with pytest.raises(InputError, match="state-dependent noise"):
        PPO.load(tmp_path / "sde")
    # Weights that are a pickle of something else are not run.
    evil = io.BytesIO()
    torch.save({"x": print}, evil)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("data", json.dumps({}))
        archive.writestr("policy.pth", evil.getvalue())
    with pytest.raises(InputError, match="not a model of stable-baselines3"):
        import_sb3(tmp_path / "evil.zip")
    with pytest.raises(InputError, match="not affine"):
        export_sb3(tmp_path / "x.zip", ActorCritic(PolicySpec(3, 1, 2, "box", 1, normalizer="quantile"), (0,)))
