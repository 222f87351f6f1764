"""Epochs in which the critic alone learns, after PPO's own: values may be fitted for longer than a policy may move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drl_agents.agents.sequences import memories
from drl_agents.rollout.buffer import Rollout

if TYPE_CHECKING:
    from drl_agents.agents.ppo import AgentPPO, Batch


def train_critic(agent: AgentPPO, rollout: Rollout, batch: Batch, rate: Tensor, orders: Sequence[Tensor]) -> None:
    """Passes of `num_minibatches` steps of the critic's own optimiser on vf_coef (V - R)^2 / 2.

    Nothing but the critic's own parameters learns: an encoder or a memory that it shares with the actor stays as it is.

    Args:
        rate: (P, 1) learning rates. orders: (P, slots), one for each pass.
    """
    config, policy, critic, hyper = agent.config, agent.policy, agent.policy.critic, agent.hyper
    everyone = torch.ones_like(rate, dtype=torch.bool)
    parameters = list(critic.parameters())
    if batch.memory is not None:  # what the critic reads does not change any more
        with torch.no_grad():
            batch = batch._replace(state=memories(agent, rollout, rollout.horizon_len), bar=None)
    for order in orders:
        for index in order.tensor_split(config.num_minibatches, dim=1):
            state, returns = (agent.pick(batch, x, index) for x in (batch.state, batch.returns))
            with torch.enable_grad():
                with agent.precision():
                    if batch.memory is not None:
                        (value,) = policy.heads(None, state, critic)
                    else:
                        seen, where = agent.seen(batch.windows, agent.pick_bars(batch, index))
                        (value,) = policy.outputs(seen, state, critic, where=where)
                loss = (hyper["vf_coef"] * 0.5 * (value.squeeze(-1) - returns).square()).mean(-1)
                if agent.loss_scale is not None:
                    loss = loss * agent.loss_scale.scale
                grads = torch.autograd.grad(loss.sum(), parameters)
            grads = torch.cat([g.reshape(agent.n_members, -1) for g in grads], dim=1)
            if agent.loss_scale is not None:
                grads = agent.loss_scale.unscale(grads)
            agent.critic_optimizer.step(grads, rate, hyper["max_grad_norm"], everyone)
