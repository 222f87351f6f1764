"""Short-horizon actor-critic (Xu et al., "Accelerated Policy Learning with Parallel Differentiable Simulation", ICLR
2022), for P members at once: the gradient of the reward is taken through the books instead of estimated.

The market is exogenous and the books are arithmetic, so what an action earns is a known function of it (Moody and
Saffell, "Learning to trade via direct reinforcement", 2001; Buehler et al., "Deep hedging", 2019). A window of
`horizon_len` steps is one graph, through orders, fills, costs and rewards; what lies beyond it is a critic's to say.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drl_agents.agents.adam import FlatAdam
from drl_agents.agents.base import AgentBase
from drl_agents.agents.members import PerMember, check_ranges, member_columns
from drl_agents.agents.short_horizon import InwardClamp, window_objective
from drl_agents.networks.build import MEMORYLESS, build_policy
from drl_agents.networks.normalizer import MarketWindows
from drl_agents.networks.policy import PolicySpec, market_sums
from drl_agents.networks.population import FlatParameters, member_generators
from drl_agents.rollout.buffer import Rollout
from drl_agents.rollout.returns import explained_variance, gae
from environments.errors import InputError
from environments.observation import Observation
from environments.vec_env import VecEnv


@dataclass(frozen=True)
class SHACConfig:
    """Hyper-parameters. Those typed `PerMember` may differ between members.

    horizon_len: T, steps the gradient is taken through. critic_epochs, num_minibatches: passes of the critic over a
    window, and the steps of each. learning_rate: of the actor. td_lambda: of the critic's targets. tau: share by which
    the target critic moves to the critic after a window. temperature: of the softmax that stands for a choice while
    training. reward_scale: factor on every reward. anneal_lr: both learning rates fall linearly to 0 over training.
    amp: precision of matrix products, "off" (float32) or "bf16". compile: "auto", "on" or "off", see `Compiler`; of the
    critic's steps and of walks, a window's graph is not compiled.

    Exploration is Gaussian noise on the actor's output, its standard deviation learned with the actor: noise costs what
    it trades. Choices have noise of Gumbel's distribution instead.
    """

    horizon_len: int = 32
    critic_epochs: int = 1
    num_minibatches: int = 4
    anneal_lr: bool = False
    learning_rate: PerMember = 5e-3
    critic_learning_rate: PerMember = 1e-3
    gamma: PerMember = 0.99
    td_lambda: PerMember = 0.95
    tau: PerMember = 0.5
    temperature: PerMember = 1.0
    max_grad_norm: PerMember = 1.0
    reward_scale: PerMember = 1.0
    amp: str = "off"
    compile: str = "auto"

    def __post_init__(self) -> None:
        for name in ("horizon_len", "critic_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: at least 1 is needed")
        check_ranges(self, _RANGES)
        if self.amp == "fp16":
            raise InputError("amp='fp16': gradients through the books underflow in it, accepted are off, bf16")


_RANGES = (
    ("learning_rate", 0.0, 1.0),
    ("critic_learning_rate", 0.0, 1.0),
    ("gamma", 0.0, 1.0),
    ("td_lambda", 0.0, 1.0),
    ("tau", 1e-6, 1.0),
    ("temperature", 1e-3, 1e3),
    ("max_grad_norm", 1e-6, 1e6),
    ("reward_scale", 1e-9, 1e9),
)


class Window(NamedTuple):
    """A rollout's graph. reward: (T, N) and final_state: (T, N, K), as the rollout has them, with their gradients."""

    rollout: Rollout
    reward: Tensor
    final_state: Tensor


class AgentSHAC(AgentBase):
    """SHAC over environments with a gradient (`VecEnv.why_no_gradient`): a window is explored with its graph, `update`
    goes back through it once and fits the critic to the window's TD(lambda) returns.

    Where actions are choices, a softmax over them takes their place in training and the most likely one when judged.

    Args:
        spec: the policy's shapes and network.
        config: hyper-parameters.
        seeds: one per member; a member depends on its own seed alone.

    An encoder of the market, which actor and critics share, learns from the actor's objective alone.

    Raises:
        InputError: another network than `MEMORYLESS`: a window's graph begins without a memory.
    """

    config_class = SHACConfig

    def __init__(
        self,
        spec: PolicySpec,
        config: SHACConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.config = spec, config or SHACConfig()
        super().__init__(seeds, torch.device(device), self.config.amp, self.config.compile)
        self.policy = build_policy(spec, seeds, accepted=MEMORYLESS).to(self.device)
        self.distribution = self.policy.distribution
        self.target = copy.deepcopy(self.policy.critic).requires_grad_(False)
        self.actor_parameters = FlatParameters(_actor(self.policy), self.n_members)
        self.critic_parameters = FlatParameters(self.policy.critic, self.n_members)
        self.target_parameters = FlatParameters(self.target, self.n_members)
        # Shorter memories than Adam's usual: the gradient is exact, and what it is of moves.
        self.actor_optimizer = FlatAdam(self.actor_parameters, betas=(0.7, 0.95))
        self.critic_optimizer = FlatAdam(self.critic_parameters, betas=(0.7, 0.95))
        self.shuffle_generators = list(member_generators(seeds, stream=2, device=self.device))
        self.hyper = member_columns(self.config, self.n_members, self.device)
        self._window: Window | None = None

    # ----------------------------------------------------------------------------------------- exploring

    def embed(self, windows: Tensor) -> Tensor:
        return self.policy.embed(windows, self.policy.actor)

    def act(self, market: Tensor | None, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As `AgentBase.act`; of choices the shares (P, n, choices). Log probabilities are 0: nothing reads them."""
        (head,) = self.policy.heads(market, state, self.policy.actor)
        nothing = torch.zeros(head.shape[:2], device=head.device)
        if self.spec.action == "discrete":
            return torch.softmax((head + noise) / self.hyper["temperature"].unsqueeze(-1), dim=-1), nothing
        return InwardClamp.apply(head + noise * self.policy.log_std.exp()), nothing

    def best(self, market: Tensor | None, state: Tensor) -> Tensor:
        (head,) = self.policy.heads(market, state, self.policy.actor)
        return self.distribution.mode(head)

    def check_env(self, env: VecEnv) -> None:
        if (reason := env.why_no_gradient()) is not None:
            raise InputError(f"agent shac cannot train here: {reason}")

    def explore_vec_env(self, env: VecEnv, horizon_len: int) -> Rollout:
        """`horizon_len` steps with their graph, which the next `update` goes back through.

        Raises:
            InputError: the environment cannot be differentiated, says why; or it has other members than the agent.
        """
        self.check_env(env)
        rollout, noise = self._begin(env, horizon_len)
        draws, observation = env.draws(horizon_len), self._observation
        env.detach()
        rewards, finals = [], []
        for t in range(horizon_len):
            with torch.no_grad():
                rollout.put_observation(t, observation)
            with torch.enable_grad():
                with self.precision():
                    action, nothing = self.act(*self.see(env, observation, None), noise[t])
                step = env.advance(action.flatten(0, 1), None if draws is None else draws[t])
            rewards.append(step.reward)
            finals.append(step.final_observation.state)
            with torch.no_grad():
                chosen = action.argmax(-1) if self.spec.action == "discrete" else action
                rollout.put_step(t, chosen.flatten(0, 1), nothing.flatten(), step)
            observation = step.observation
        env.detach()
        rollout.put_observation(horizon_len, Observation(observation.bar, observation.state.detach()))
        self._observation = Observation(observation.bar, observation.state.detach())
        self._window = Window(rollout, torch.stack(rewards), torch.stack(finals))
        return rollout

    # ------------------------------------------------------------------------------------------ learning

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """One step of the actor, `critic_epochs` passes of the critic. Returns (P,) figures.

        Raises:
            ValueError: the rollout is not the one that was explored last, or was learned from already.
        """
        window, self._window = self._window, None
        if window is None or window.rollout is not rollout:
            raise ValueError("SHAC learns once, from what it explored last: the graph of any other rollout is gone")
        falling = 1 - self.progress if self.config.anneal_lr else 1.0
        cut = rollout.truncated.clone()
        cut[-1] |= ~rollout.terminated[-1]
        with torch.enable_grad():
            cut_value = self._cut_values(window, cut)
            done = rollout.terminated | rollout.truncated
            gamma, scale, td_lambda = (self._per_env(name, rollout) for name in ("gamma", "reward_scale", "td_lambda"))
            earned = window_objective(window.reward * scale, cut, cut_value, done, gamma)
            loss = -earned.view(self.n_members, -1).mean(1)
            actor = list(_actor(self.policy).parameters())
            grad = self.actor_parameters.flatten(torch.autograd.grad(loss.sum(), actor))
        with torch.no_grad():
            everyone = torch.ones(self.n_members, 1, dtype=torch.bool, device=self.device)
            rate = self.hyper["learning_rate"] * falling
            norm = self.actor_optimizer.step(grad, rate, self.hyper["max_grad_norm"], everyone).squeeze(1)
            value = self._target_values(rollout)
            after = torch.cat([value[1:], value[-1:]])  # the last is a cut, or was terminated
            after = torch.where(cut, cut_value, after).masked_fill(rollout.terminated, 0.0)
            returns = rollout.by_member(gae(rollout.reward * scale, value, after, done, gamma, td_lambda)[1])
            value_loss, skipped = self._fit_critic(rollout, returns, falling)
            self.target_parameters.values.lerp_(self.critic_parameters.values, self.hyper["tau"])
        state = rollout.by_member(rollout.state[:-1])
        if self.policy.state_normalizer is not None:
            self.policy.state_normalizer.update(state)
        figures = {
            "policy_loss": loss.detach(),
            "value_loss": value_loss,
            "grad_norm": norm,
            "skipped_updates": torch.maximum((~norm.isfinite()).float(), skipped),
            "explained_variance": explained_variance(rollout.by_member(value), returns, dim=1),
            "reward": rollout.by_member(rollout.reward).mean(1),
        }
        if self.policy.log_std is not None:
            figures["action_std"] = self.policy.log_std.detach().exp().mean((1, 2))
        return figures

    def _per_env(self, name: str, rollout: Rollout) -> Tensor:
        """(N,) a hyper-parameter by environment."""
        each = rollout.n_envs // self.n_members
        return self.hyper[name].repeat_interleave(each, 0, output_size=rollout.n_envs).squeeze(1)

    def _cut_values(self, window: Window, cut: Tensor) -> Tensor:
        """(T, N) the target critic's value of the final states at the cuts, with their gradient; elsewhere 0."""
        rollout = window.rollout
        step, env = cut.nonzero(as_tuple=True)
        member = env // (rollout.n_envs // self.n_members)
        counts = torch.bincount(member, minlength=self.n_members)
        # A row for each member's cuts; what is missing of a row's length is filled with others' and not read.
        order, place = torch.argsort(member, stable=True), torch.arange(int(counts.max()), device=self.device)
        own = place < counts.unsqueeze(1)
        index = order[((counts.cumsum(0) - counts).unsqueeze(1) + place).clamp(max=len(order) - 1)]
        state = window.final_state[step[index], env[index]]
        seen = None
        if rollout.final_bar is not None:
            bar = rollout.final_bar[step[index], env[index] // rollout.envs_per_clock]
            seen = self.windows(rollout.rows).at(bar)
        found = self._values(seen, state, self.target)
        rows = (step[index][own], env[index][own])
        return torch.zeros_like(rollout.reward).index_put(rows, found[own])

    def _target_values(self, rollout: Rollout) -> Tensor:
        """(T, N) the target critic's values of what was seen before each step."""
        bar = None if rollout.bar is None else rollout.by_member(rollout.bar[:-1])
        seen = None if bar is None else self.windows(rollout.rows).at(bar)
        value = self._values(seen, rollout.by_member(rollout.state[:-1]), self.target)
        return rollout.by_time(value, rollout.horizon_len)

    def _values(self, seen: Tensor | None, state: Tensor, critic: nn.Module) -> Tensor:
        """(P, n) a critic's values of normalised windows (P, m, L * R), None outside a market, and states (P, n, K).

        No gradient goes back to an encoder: it would change what the actor sees to please the critic.
        """
        policy = self.policy
        with self.precision():
            if policy.encoder is None:
                return policy.outputs(seen, state, critic)[0].squeeze(-1)
            with torch.no_grad():
                encoded = policy.encode(seen)
            return policy.heads(market_sums(encoded, (critic,)), state, critic)[0].squeeze(-1)

    def _fit_critic(self, rollout: Rollout, returns: Tensor, falling: float) -> tuple[Tensor, Tensor]:
        """(value loss, share of the steps that were skipped for their gradients), each (P,), means over the passes.

        returns: (P, T * N / P). What is shuffled are slots, the samples that see one bar.
        """
        config, p = self.config, self.n_members
        bar = None if rollout.bar is None else rollout.by_member(rollout.bar[:-1])
        windows = None if bar is None else self.windows(rollout.rows)
        state = rollout.by_member(rollout.state[:-1])
        slots = returns.shape[1] // rollout.envs_per_clock
        if slots < config.num_minibatches:
            raise InputError(f"num_minibatches={config.num_minibatches} is too many for {slots} bars that were seen")
        rate = self.hyper["critic_learning_rate"] * falling
        step = self.compiler(self._critic_step) if self.compiler.active else self._critic_step
        parts = torch.zeros(2, p, device=self.device)
        for _ in range(config.critic_epochs):
            order = torch.stack([torch.randperm(slots, generator=g, device=g.device) for g in self.shuffle_generators])
            for index in order.to(self.device).tensor_split(config.num_minibatches, dim=1):
                parts += step(windows, bar, state, returns, index, rate)
        return tuple(parts / (config.critic_epochs * config.num_minibatches))

    def _critic_step(
        self,
        windows: MarketWindows | None,
        bar: Tensor | None,
        state: Tensor,
        returns: Tensor,
        index: Tensor,
        rate: Tensor,
    ) -> Tensor:
        """One step on mean (V - R)^2 / 2 over the slots `index` (P, S): (2, P), the loss and whether it was skipped."""
        member = torch.arange(self.n_members, device=self.device).unsqueeze(1)
        slots = returns.shape[1] if bar is None else bar.shape[1]

        def pick(x: Tensor) -> Tensor:
            return x.view(x.shape[0], slots, -1, *x.shape[2:])[member, index].flatten(1, 2)

        seen = None if bar is None else windows.at(bar[member, index])
        critic = self.policy.critic
        with torch.enable_grad():
            value = self._values(seen, pick(state), critic)
            loss = 0.5 * (value - pick(returns)).square().mean(1)
            grad = self.critic_parameters.flatten(torch.autograd.grad(loss.sum(), list(critic.parameters())))
        with torch.no_grad():
            everyone = torch.ones(self.n_members, 1, dtype=torch.bool, device=self.device)
            norm = self.critic_optimizer.step(grad, rate, self.hyper["max_grad_norm"], everyone)
        return torch.stack([loss.detach(), (~norm.isfinite()).float().squeeze(1)])

    # --------------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        shuffles = torch.stack([g.get_state() for g in self.shuffle_generators])
        own = {
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "target": self.target_parameters.values.clone(),
            "shuffle_generators": shuffles,
        }
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.target_parameters.values.copy_(state["target"])
        for generator, own in zip(self.shuffle_generators, state["shuffle_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view


def _actor(policy: nn.Module) -> nn.Module:
    """What the actor's gradient is taken of: its network, and, where there are any, the encoder of the market and its
    noise's standard deviation."""
    parts = nn.Module()
    parts.network, parts.encoder, parts.log_std = policy.actor, policy.encoder, policy.log_std
    return parts
