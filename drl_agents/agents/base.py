"""AgentBase: explores an environment, learns from what it saw.

A subclass writes its networks, `act`, `update` and its losses. Agents touch no files and no command lines.
An agent is a population of P members trained side by side; mostly P is 1.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from drl_agents.agents.compilation import Compiler
from drl_agents.agents.graphs import Graphs, recorder_for
from drl_agents.agents.precision import PRECISIONS, why_slow
from drl_agents.networks.distributions import ActionDistribution
from drl_agents.networks.normalizer import MAX_TABLE, MarketWindows
from drl_agents.networks.player import Player
from drl_agents.networks.population import member_generators
from drl_agents.rollout.buffer import Rollout
from environments.adapters import GymnasiumVecEnv
from environments.errors import InputError
from environments.observation import Observation
from environments.vec_env import VecEnv

logger = logging.getLogger(__name__)

_BLOCK = 2**24  # numbers of market windows that are embedded at a time
_FEW = 64  # environments whose steps are too short to share out between threads


class AgentBase(ABC):
    """What every agent has.

    Attributes:
        policy: the network, with its normalisers.
        seeds: one per member.
        device: where the network lives.
        compiler: what compiles the agent's inner functions.
        graphs: what launches them again without Python, on a GPU.
        looks: whether the agent may look at values while it explores and learns. On the CPU that is free and can save
            work; elsewhere the host would wait for the device.
        recordable: exploring and learning keep to what `Graphs` asks.
        config: its hyper-parameters; a trainer reads `config.horizon_len`.
        progress: share of the training that is done, set by a trainer before every iteration.
        on_phase: called with the name of a part of an update that begins, such as "critic"; set by a trainer.

    Args:
        amp: precision of matrix products, "off" (float32), "bf16" or "fp16".
        compile: see `Compiler`.
    """

    policy: nn.Module
    distribution: ActionDistribution
    config: Any
    recordable: bool = False
    progress: float = 0.0
    on_phase: Callable[[str], None] = staticmethod(lambda name: None)

    def __init__(self, seeds: Sequence[int], device: torch.device, amp: str = "off", compile: str = "off") -> None:
        if amp not in PRECISIONS:
            raise InputError(f"amp={amp!r}: accepted are {', '.join(PRECISIONS)}")
        if reason := why_slow(device, amp):
            logger.warning("amp=%s: %s", amp, reason)
        self.seeds, self.device, self.amp = tuple(seeds), device, amp
        self.compiler = Compiler(compile)
        self.graphs = Graphs(recorder_for(device, compile) if self.recordable else None)
        self.looks = device.type == "cpu"
        self.noise_generators = list(member_generators(seeds, stream=1, device=device))
        self._rollout: Rollout | None = None
        self._observation: Observation | None = None
        self._memory: Tensor | None = None  # (P, N / P, M) of a policy that remembers, before `_observation`
        self._explored: VecEnv | None = None  # the environment that `_observation` is of
        self._single: tuple[gymnasium.Env, VecEnv] | None = None

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    def precision(self) -> AbstractContextManager[None]:
        """The context matrix products run in."""
        return torch.autocast(self.device.type, PRECISIONS[self.amp], enabled=self.amp != "off")

    # ----------------------------------------------------------------------------------------- exploring

    def check_env(self, env: VecEnv) -> None:
        """Raises InputError, saying why, where the agent cannot train in an environment it was made for."""

    def explore_env(self, env: VecEnv | gymnasium.Env, horizon_len: int) -> Rollout:
        """Run the policy for `horizon_len` steps, going on where the last call stopped."""
        if isinstance(env, VecEnv):
            return self.explore_vec_env(env, horizon_len)
        return self.explore_one_env(env, horizon_len)

    def explore_one_env(self, env: gymnasium.Env, horizon_len: int) -> Rollout:
        """`explore_vec_env` over the view of a single Gymnasium environment as N = 1."""
        if self._single is None or self._single[0] is not env:
            self._single = (env, GymnasiumVecEnv(lambda: env, 1, seed=self.seeds[0]))
        return self.explore_vec_env(self._single[1], horizon_len)

    @torch.no_grad()
    def explore_vec_env(self, env: VecEnv, horizon_len: int) -> Rollout:
        """Fill the rollout buffer; the same buffer every time.

        Raises:
            InputError: the environment has other members than the agent.
        """
        rollout, noise = self._begin(env, horizon_len)
        if self.policy.memory_size:
            memory = self.policy.initial_memory(env.n_envs // self.n_members, self.noise_generators)
            if self._memory is not None:  # what is remembered, with this rollout's dropout
                memory[..., : self.policy.memory_size] = self._memory[..., : self.policy.memory_size]
            self._memory = rollout.keep_memory(memory)
        draws = env.draws(horizon_len)
        # Before anything is compiled or recorded: what is made once is not part of a step.
        windows = None if env.rows is None else self.windows(env.rows)
        given = (env, windows, rollout, self._observation, self._memory, noise, draws)
        self._observation, self._memory = self.graphs(self._fill, *given) if env.pure else self._fill(*given)
        return rollout

    def _fill(
        self,
        env: VecEnv,
        windows: MarketWindows | None,
        rollout: Rollout,
        observation: Observation,
        memory: Tensor | None,
        noise: Tensor,
        draws: Tensor | None,
    ) -> tuple[Observation, Tensor | None]:
        """All steps of a rollout; returns what `_explore` does. windows: the market's, which a recording is of."""
        steps = rollout.horizon_len
        compiled = self.compiler.active and env.pure
        table = self.market_table(env, steps)
        explore = self.compiler(self._explore, serial=env.n_envs <= _FEW) if compiled else self._explore
        stride = steps
        if compiled:  # an encoder, unrolled, would be compiled as many times over
            stride = 1 if self.policy.encoder is not None else steps_per_call(env.n_envs, steps)
        parts = rollout.parts(stride)
        own = [None] * len(parts) if draws is None else draws.split(stride)
        for part, drawn, draw in zip(parts, noise.split(stride), own, strict=True):
            # The last steps, if they do not fill a call, are not worth another compilation.
            run = explore if part.horizon_len == stride else self._explore
            observation, memory = run(env, part, observation, memory, table, drawn, draw)
        rollout.put_observation(steps, observation)
        return observation, memory

    def _begin(self, env: VecEnv, horizon_len: int) -> tuple[Rollout, Tensor]:
        """The rollout to be filled, and its noise (T, P, N / P, .); another environment than before is reset.

        Raises:
            InputError: the environment has other members than the agent, or is none it can train in.
        """
        if env.n_members != self.n_members:
            raise InputError(f"the environment serves {env.n_members} members, the agent has {self.n_members}")
        self.check_env(env)
        rollout = self._buffer(env, horizon_len)
        each = env.n_envs // self.n_members
        noise = torch.stack([self.distribution.noise((horizon_len, each), g) for g in self.noise_generators], dim=1)
        if self._explored is not env or self._observation is None:
            self._observation, self._explored, self._memory = env.reset(), env, None
        return rollout, noise.to(self.device)

    def _explore(
        self,
        env: VecEnv,
        rollout: Rollout,
        observation: Observation,
        memory: Tensor | None,
        table: Tensor | None,
        noise: Tensor,
        draws: Tensor | None,
    ) -> tuple[Observation, Tensor | None]:
        """As many steps as `noise` (T, P, n, .) has, recorded in `rollout`; returns what is seen after them, and the
        memory before that.

        table: (P, B, W) all bars embedded, or None: bars are embedded as they are seen.
        """
        for t in range(noise.shape[0]):
            rollout.put_observation(t, observation)
            with self.precision():
                seen, memory = self.recall(*self.see(env, observation, table), memory)
                action, log_prob = self.act(*seen, noise[t])
            action = action.flatten(0, 1)
            step = env.advance(action, None if draws is None else draws[t])
            rollout.put_step(t, action, log_prob.flatten(), step)
            observation = step.observation
            if memory is not None:
                ended = (step.terminated | step.truncated).view(self.n_members, -1)
                memory = self.policy.forget_ended(memory, ended)
        return observation, memory

    def recall(
        self, market: Tensor | None, state: Tensor, memory: Tensor | None
    ) -> tuple[tuple[Tensor | None, Tensor], Tensor | None]:
        """What `act` or `best` is to be given, and the memory after it: of a policy that remembers (memory is not None)
        the memory is all it decides by."""
        if memory is None:
            return (market, state), None
        memory = self.policy.remember(market, state, memory)
        return (None, memory), memory

    def see(self, env: VecEnv, observation: Observation, table: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """(market, state) of `act` for what is observed; table: of `market_table`."""
        p = self.n_members
        market = None
        if observation.bar is not None:
            bar = observation.bar[:: env.envs_per_clock].view(p, -1)
            if table is None:
                market = self.embed(self.windows(env.rows).at(bar))
            else:
                market = table[torch.arange(p, device=self.device).unsqueeze(1), bar]
        return market, observation.state.view(p, -1, env.state_size)

    @torch.no_grad()
    def market_table(self, env: VecEnv, steps: int) -> Tensor | None:
        """(P, B, W) every bar of the market embedded, where that is no more work than embedding what `steps` steps see.

        Calls are what small products cost, so twice the bars in one are still the lesser work. A table of more than
        `MAX_TABLE` numbers is not made.
        """
        clocks = env.n_envs // self.n_members // env.envs_per_clock
        if env.rows is None or (n_bars := env.rows.shape[0]) > 2 * steps * clocks:
            return None
        windows = self.windows(env.rows)
        # In blocks: the windows of a long lookback are many times the table they become.
        size = max(1, _BLOCK // (self.n_members * env.lookback * env.rows.shape[1]))
        table = None
        for first in range(0, n_bars, size):
            last = min(first + size, n_bars)
            bars = torch.arange(first, last, device=self.device).expand(self.n_members, -1)
            with self.precision():
                part = self.embed(windows.at(bars))
            if table is None:
                if part.shape[0] * part.shape[2] * n_bars > MAX_TABLE:
                    return None
                table = part.new_empty(part.shape[0], n_bars, part.shape[2])
            table[:, first:last] = part
        return table

    def _buffer(self, env: VecEnv, horizon_len: int) -> Rollout:
        known = self._rollout
        if known is None or self._explored is not env or known.horizon_len != horizon_len:
            space = env.single_action_space
            dtype = torch.int64 if isinstance(space, gymnasium.spaces.Discrete) else torch.float32
            self._rollout = Rollout(env, horizon_len, space.shape, dtype)
        return self._rollout

    # ------------------------------------------------------------------------------------------ learning

    def windows(self, rows: Tensor) -> MarketWindows:
        """The windows of a market's rows (B, R) as the networks read them."""
        return self.policy.windows(rows)

    def embed(self, windows: Tensor) -> Tensor:
        """What acting needs of market windows (P, m, L * R): (P, m, W), a function of the bar alone.

        The default is the windows as they are.
        """
        return windows

    @abstractmethod
    def act(self, market: Tensor | None, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Explore.

        Args:
            market: (P, m, W) of `embed`, each row serving n / m samples in succession; None outside a market.
            state: (P, n, K); of a policy that remembers its memory (P, n, M), with market None.
            noise: (P, n, .) of the distribution.

        Returns:
            actions (P, n, ...), log probabilities (P, n).
        """

    @abstractmethod
    def best(self, market: Tensor | None, state: Tensor) -> Tensor:
        """The actions (P, n, ...) to be judged by; market, state: as for `act`."""

    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Learn from a rollout. Returns figures to log, each (P,)."""

    @property
    def decide(self) -> Player:
        """The action to be judged by: dense observations (P, n, D) -> actions (P, n, ...). One for each walk: where the
        policy remembers, it carries the memory from one call to the next."""
        return Player(self.policy, self.precision)

    # --------------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on, as tensors, numbers, and dictionaries of them."""
        generators = torch.stack([g.get_state() for g in self.noise_generators])
        # Copies: what was saved must not go on changing with the next update.
        policy = {name: value.clone() for name, value in self.policy.state_dict().items()}
        return {"policy": policy, "noise_generators": generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        for generator, own in zip(self.noise_generators, state["noise_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view

    def observation_state(self) -> dict[str, Tensor] | None:
        """The observation the next rollout begins with."""
        if self._observation is None:
            return None
        bar = {} if self._observation.bar is None else {"bar": self._observation.bar.clone()}
        memory = {} if self._memory is None else {"memory": self._memory.clone()}
        return {"state": self._observation.state.clone(), **bar, **memory}

    def restore_observation(self, state: dict[str, Tensor], env: VecEnv) -> None:
        """Let the next rollout, if it is of `env`, begin with what `observation_state` gave."""
        self._observation, self._explored = Observation(state.get("bar"), state["state"]), env
        self._memory = state.get("memory")
        self._rollout = None


def steps_per_call(n_envs: int, steps: int) -> int:
    """How many of `steps` share one call of a compiled function: small ones cost less than the call.

    A divisor of `steps` where there is one in the upper half of what is worth it.
    """
    most = min(8 if n_envs <= 16 else 4 if n_envs <= 256 else 1, steps)
    return next((k for k in range(most, most // 2, -1) if steps % k == 0), most)
