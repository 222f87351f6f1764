"""stable-baselines3's PPO by name and defaults, over our agent: a user's script changes one import.

    from drl_agents.compat.sb3 import PPO        # was: from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "CartPole-v1").learn(50_000)

API: https://stable-baselines3.readthedocs.io/en/master/modules/ppo.html. The one difference in what is learned:
observations are normalised by their running mean and deviation, inside the policy and without a limit (not of a model
that stable-baselines3 wrote).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.progress import MofNCompleteColumn
from rich.progress import Progress as Bar

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.compat.sb3_callbacks import Logger, Progress, as_callback
from drl_agents.compat.sb3_env import SB3VecEnv, Told, as_vec_env, own_action
from drl_agents.compat.sb3_file import network_options, read_model, space_facts, space_of, write_model
from drl_agents.compat.sb3_policy import MlpPolicy, arguments_of, check_policy, refuse_unknown
from drl_agents.compat.sb3_view import sb3_view
from drl_agents.compat.sb3_zip import export_sb3, import_sb3, sb3_options
from drl_agents.networks.normalizer import FixedNormalizer
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.record import versions
from environments.errors import InputError
from environments.vec_env import Step, VecEnv

Schedule = float | Callable[[float], float]


class _Stopped(Exception):
    """A callback asked to stop."""


class PPO:
    """Proximal policy optimisation with stable-baselines3's names, defaults and units.

    Args:
        policy: "MlpPolicy" or that class. env: a Gymnasium id or environment, a vector environment of
            stable-baselines3's, or a VecEnv; None for a model that only predicts.
        learning_rate, clip_range: numbers, or functions of the share of training that remains (1 to 0).
        batch_size: samples of a minibatch; where it does not divide n_steps * n_envs, the minibatches are made a
            little smaller. policy_kwargs: net_arch (the same layers for pi and vf), activation_fn (nn.Tanh, nn.ReLU),
            log_std_init, ortho_init=True.

    Raises:
        InputError: an option that is not here was set to other than its default, or one that nobody has was given.
    """

    def __init__(
        self,
        policy: str | type,
        env: Any,
        learning_rate: Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: Schedule = 0.2,
        clip_range_vf: None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: None = None,
        rollout_buffer_kwargs: None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        refuse_unknown("PPO", unknown, _ARGUMENTS)
        check_policy(policy)
        absent = {"clip_range_vf": clip_range_vf, "use_sde": use_sde, "rollout_buffer_class": rollout_buffer_class,
                  "rollout_buffer_kwargs": rollout_buffer_kwargs, "tensorboard_log": tensorboard_log,
                  "_init_setup_model": not _init_setup_model}  # fmt: skip
        if wanted := [name for name, value in absent.items() if value]:
            raise InputError(f"{', '.join(wanted)}: not available here, leave it at its default")
        self.learning_rate, self.clip_range = learning_rate, clip_range
        self.n_steps, self.batch_size, self.n_epochs = n_steps, batch_size, n_epochs
        self.gamma, self.gae_lambda, self.target_kl = gamma, gae_lambda, target_kl
        self.ent_coef, self.vf_coef, self.max_grad_norm = ent_coef, vf_coef, max_grad_norm
        self.normalize_advantage, self.policy_kwargs = normalize_advantage, policy_kwargs or {}
        self.verbose, self.seed, self.stats_window_size = verbose, seed, stats_window_size
        self.device = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else
                                   "cpu" if device == "auto" else device)  # fmt: skip
        self.num_timesteps = 0
        self.logger = Logger(verbose)
        self.env: VecEnv | None = None
        self.agent: AgentPPO | None = None
        self.policy = MlpPolicy(self)
        self._given = self._view = None
        self._random = torch.Generator().manual_seed(0 if seed is None else seed)
        if env is not None:
            self._take(env)
            if seed is not None and isinstance(self.env, SB3VecEnv):
                self.env.venv.seed(seed)
            self._build(PolicySpec.of(self.env, **network_options(self.policy_kwargs)))
            self.agent.policy.fit_normalizer(self.env)

    # --------------------------------------------------------------------------------------- environments

    def _take(self, env: Any) -> None:
        self._given, self._view = env, None
        self.env, self.observation_space, self.action_space = as_vec_env(env, self.seed or 0)
        self.n_envs = self.env.n_envs

    def get_env(self) -> Any:
        """The environment with stable-baselines3's vector interface, see `sb3_view`; None where there is none."""
        if self._view is None and self.env is not None:
            self._view = sb3_view(self._given, self.env, self.observation_space, self.action_space)
        return self._view

    def get_vec_normalize_env(self) -> None:
        """None: observations are normalised inside the policy."""

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on in another environment with the same spaces.

        Raises:
            InputError: the spaces differ.
        """
        seen, acted = self.observation_space, self.action_space
        new, new_seen, new_acted = as_vec_env(env, self.seed or 0)
        if (seen.shape, acted) != (new_seen.shape, new_acted):
            raise InputError(f"set_env: spaces are {new_seen}, {new_acted}, the model's are {seen}, {acted}")
        self._given, self._view, self.env, self.n_envs = env, None, new, new.n_envs
        if self.agent is None or self.agent.config.num_minibatches != self._minibatches():
            self._rebuild()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what `predict` draws and the environment's next reset."""
        if seed is not None:
            self._random.manual_seed(seed)
            if self.env is not None:
                self.env.reset(seed)

    # ------------------------------------------------------------------------------------------- learning

    def _minibatches(self) -> int:
        samples = self.n_steps * self.n_envs
        if not 2 <= self.batch_size <= samples:
            raise InputError(f"batch_size={self.batch_size}: accepted are 2 to n_steps * n_envs = {samples}")
        return math.ceil(samples / self.batch_size)

    def _config(self) -> PPOConfig:
        return PPOConfig(
            horizon_len=self.n_steps,
            num_minibatches=self._minibatches() if self.env is not None else 1,
            update_epochs=self.n_epochs,
            norm_adv=self.normalize_advantage,
            learning_rate=_at(self.learning_rate, 1.0),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            clip_coef=_at(self.clip_range, 1.0),
            ent_coef=self.ent_coef,
            vf_coef=2 * self.vf_coef,  # its value loss is the mean square, ours is half of it
            max_grad_norm=self.max_grad_norm,
            target_kl=None if self.target_kl is None else 1.5 * self.target_kl,  # it stops at one and a half times
            compile="off",
        )

    def _build(self, spec: PolicySpec) -> None:
        seed = int(torch.randint(2**31, (), generator=self._random)) if self.seed is None else self.seed
        self.agent = AgentPPO(spec, self._config(), (seed,), self.device)
        for normalizer in (self.agent.policy.row_normalizer, self.agent.policy.state_normalizer):
            if isinstance(normalizer, FixedNormalizer):
                normalizer.limit = math.inf  # stable-baselines3's policies have none, and models go there

    def _rebuild(self) -> None:
        """The same weights and optimiser under the present configuration."""
        state = self.agent.state_dict()
        self._build(self.agent.spec)
        self.agent.load_state_dict(state)

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int | None = 1,
        tb_log_name: str = "PPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        **unknown: Any,
    ) -> PPO:
        """Train for at least `total_timesteps` environment steps: whole rollouts.

        callback: a function of (locals, globals) that returns False to stop, an object with stable-baselines3's
            callback methods, or a list of them. log_interval: rollouts between two lines, where verbose.
        progress_bar: show one in the terminal.
        """
        refuse_unknown("learn", unknown, arguments_of(PPO.learn))
        if self.env is None or self.agent is None:
            raise InputError("learn: the model has no environment; give one with set_env")
        if reset_num_timesteps:
            self.num_timesteps = 0
        first = self.num_timesteps
        target = first + total_timesteps
        told = as_callback(callback)
        told.init_callback(self)
        told.on_training_start({"self": self, "total_timesteps": target}, {})
        progress = Progress(self.stats_window_size, self.env.n_envs)
        bar = Bar(*Bar.get_default_columns(), MofNCompleteColumn(), disable=not progress_bar)
        task = bar.add_task("steps", total=total_timesteps)

        def on_step(step: Step) -> None:
            self.num_timesteps += self.env.n_envs
            progress.take(step)
            bar.update(task, completed=self.num_timesteps - first)
            self.ep_info_buffer = progress.episodes
            told.update_locals(
                {"self": self, "infos": progress.infos, "dones": progress.done, "rewards": progress.reward}
            )
            if not told.on_step():
                raise _Stopped

        env, iteration = Told(self.env, on_step), 0
        try:
            bar.start()
            while self.num_timesteps < target:
                remaining = 1 - (self.num_timesteps - first) / max(1, total_timesteps)
                self.agent.hyper["learning_rate"].fill_(_at(self.learning_rate, remaining))
                self.agent.hyper["clip_coef"].fill_(_at(self.clip_range, remaining))
                told.on_rollout_start()
                rollout = self.agent.explore_env(env, self.n_steps)
                told.on_rollout_end()
                figures = self.agent.update(rollout)
                iteration += 1
                if log_interval is not None and iteration % log_interval == 0:
                    for name, value in {
                        **progress.figures(),
                        **{f"train/{k}": float(v[0]) for k, v in figures.items()},
                    }.items():
                        self.logger.record(name, value)
                    self.logger.record("time/total_timesteps", self.num_timesteps)
                    self.logger.dump(self.num_timesteps)
        except _Stopped:
            pass  # as stable-baselines3 does: what the last, unfinished rollout saw is not learned from
        finally:
            bar.stop()
        told.on_training_end()
        return self

    # --------------------------------------------------------------------------------------------- acting

    @torch.no_grad()
    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions for one observation or several in a row, in the environment's own units; `state` as it came."""
        x = np.asarray(observation, dtype=np.float32)
        single = x.shape == self.observation_space.shape
        if x.shape[-len(self.observation_space.shape) :] != self.observation_space.shape:
            raise InputError(f"observation of shape {x.shape}: accepted is {self.observation_space.shape}, or several")
        rows = torch.from_numpy(x.reshape(1, -1, self.agent.spec.size).copy()).to(self.device)
        if deterministic:
            action = self.agent.policy.mode(rows)
        else:
            head = self.agent.policy.dense(rows, self.agent.policy.actor)[0]
            noise = self.agent.distribution.noise(head.shape[:-1], self._random).to(self.device)
            action, _ = self.agent.distribution.sample(head, self.agent.policy.log_std, noise)
        found = own_action(self.action_space, action[0].cpu().numpy())
        return (found[0] if single else found), state

    # -------------------------------------------------------------------------------------------- keeping

    def get_parameters(self) -> dict[str, dict[str, torch.Tensor]]:
        """{"policy": the network's tensors by name, "policy.optimizer": the optimiser's}."""
        return {"policy": self.agent.policy.state_dict(), "policy.optimizer": self.agent.optimizer.state_dict()}

    def save(self, path: str | Path) -> None:
        """Write the model: JSON and safetensors in a zip; `.zip` is added where the path has no suffix."""
        tensors = {f"{part.rpartition('.')[2]}.{name}": value.contiguous().cpu()
                   for part, values in self.get_parameters().items() for name, value in values.items()}  # fmt: skip
        own = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "target_kl", "ent_coef", "vf_coef",
               "max_grad_norm", "normalize_advantage", "seed", "stats_window_size", "num_timesteps")  # fmt: skip
        facts = {
            "spec": self.agent.spec.to_dict(),
            "options": {name: getattr(self, name) for name in own},
            "learning_rate": _at(self.learning_rate, 1.0),
            "clip_range": _at(self.clip_range, 1.0),
            "observation_shape": list(self.observation_space.shape),
            "action_space": space_facts(self.action_space),
        }
        write_model(path, facts, tensors)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **changes: Any,
    ) -> PPO:
        """A model that `save` wrote, or one that stable-baselines3 wrote: with what `sb3_zip.sb3_options` reads of it,
        its observations as they are, and a fresh optimiser.

        Args:
            env: to go on learning in; it is reset first in any case. changes, custom_objects: constructor arguments in
                place of the saved ones. print_system_info: print the versions here.

        Raises:
            InputError: the file is neither; a change of what nobody has, or of the network.
        """
        changes = {**(custom_objects or {}), **changes}
        changes.pop("lr_schedule", None)  # what stable-baselines3 makes of learning_rate itself
        refuse_unknown("load", changes, [a for a in _ARGUMENTS if a not in ("policy", "policy_kwargs")])
        if print_system_info:
            print("\n".join(f"{name}: {value}" for name, value in versions().items()))
        found = read_model(path)
        if found is None:
            return cls._from_sb3(Path(path), env, device, changes)
        facts, tensors = found
        options = dict(facts["options"])
        done = options.pop("num_timesteps")
        rates = {"learning_rate": facts["learning_rate"], "clip_range": facts["clip_range"]}
        model = cls("MlpPolicy", None, **{**rates, **options, **changes}, device=device)
        model.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, facts["observation_shape"], np.float32)
        model.action_space = space_of(facts["action_space"])
        model.num_timesteps = done
        model._restore(PolicySpec(**facts["spec"]), env)
        split = {part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
                 for part in ("policy", "optimizer")}  # fmt: skip
        model.agent.policy.load_state_dict(split["policy"])
        model.agent.optimizer.load_state_dict(split["optimizer"])
        return model

    @classmethod
    def _from_sb3(cls, path: Path, env: Any, device: torch.device | str, changes: dict[str, Any]) -> PPO:
        policy, space = import_sb3(path, None if env is None else as_vec_env(env, 0)[2])
        model = cls("MlpPolicy", None, **{**sb3_options(path, changes), **changes}, device=device)
        model.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (policy.spec.size,), np.float32)
        model.action_space = space
        model._restore(policy.spec, env)
        model.agent.policy.load_state_dict(policy.state_dict())
        return model

    def _restore(self, spec: PolicySpec, env: Any) -> None:
        if env is not None:
            seen, acted = self.observation_space, self.action_space
            self._take(env)
            if (math.prod(seen.shape), acted) != (math.prod(self.observation_space.shape), self.action_space):
                raise InputError(
                    f"env: its spaces are {self.observation_space}, {self.action_space}, the model's {acted}"
                )
        self._build(spec)

    def export_sb3(self, path: str | Path) -> Path:
        """Write the model as stable-baselines3's own `PPO.load` reads it; see `sb3_zip.export_sb3`."""
        names = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm",
                 "target_kl", "normalize_advantage", "num_timesteps")  # fmt: skip
        hyper = {name: getattr(self, name) for name in (*names, *(["n_envs"] if self.env is not None else []))}
        rates = {"learning_rate": _at(self.learning_rate, 1.0), "clip_range": _at(self.clip_range, 1.0)}
        return export_sb3(path, self.agent.policy, action_space=self.action_space,
                          observation_space=self.observation_space, **hyper, **rates)  # fmt: skip


def replace_sb3() -> None:
    """Make `stable_baselines3.PPO` this class, for code that is not to be changed, and say so.

    What has been imported by `from stable_baselines3 import PPO` before stays what it was.
    """
    import stable_baselines3
    import stable_baselines3.ppo

    stable_baselines3.PPO = stable_baselines3.ppo.PPO = PPO
    print("stable_baselines3.PPO is now drl_agents.compat.sb3.PPO")


_ARGUMENTS = arguments_of(PPO)


def _at(value: Schedule, remaining: float) -> float:
    return float(value(remaining) if callable(value) else value)
