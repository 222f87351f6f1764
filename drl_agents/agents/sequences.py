"""What learning by whole sequences needs of a rollout, for policies that remember."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_agents.agents.base import AgentBase
from drl_agents.rollout.buffer import Rollout


def episode_begins(rollout: Rollout) -> Tensor:
    """(T + 1, N) bool: an episode begins with what is seen before the step. Not before the first: the memory that the
    rollout keeps is already the right one."""
    done = rollout.terminated | rollout.truncated
    return torch.cat([torch.zeros_like(done[:1]), done])


def memories(agent: AgentBase, rollout: Rollout, steps: int) -> Tensor:
    """(P, N / P * steps, M) the memories after what is seen before each of the first `steps` (at most T + 1), in the
    order of `Rollout.by_sequence`."""
    windows = None
    if rollout.bar is not None:
        windows = agent.windows(rollout.rows).at(rollout.by_sequence(rollout.bar[:steps]))
    state, begins = (rollout.by_sequence(x[:steps]) for x in (rollout.state, episode_begins(rollout)))
    with agent.precision():
        return agent.policy.unroll(windows, state, rollout.memory, begins)


@torch.no_grad()
def sequence_values(agent: AgentBase, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """The critic's values: (T + 1, N) of what is seen before each step and after the last, and (T, N) of the final
    observations of truncated episodes, elsewhere any number.

    Where the agent may look, those of steps at which an episode was truncated alone, elsewhere of all.
    """
    policy, steps = agent.policy, rollout.horizon_len
    after = memories(agent, rollout, steps + 1)
    with agent.precision():
        value = policy.heads(None, after, policy.critic)[0].squeeze(-1)
    after = rollout.sequences_by_time(after, steps + 1)[:-1]
    which: slice | Tensor = slice(None)
    if agent.looks:
        which = rollout.truncated.any(1).nonzero().squeeze(1)
    final = torch.zeros_like(rollout.reward)
    kept = after[which]
    if count := kept.shape[0]:
        kept = rollout.by_member(kept)
        factors = rollout.memory[..., policy.memory_size :]
        kept = torch.cat([kept, factors.repeat(1, count, 1)], dim=-1)
        market = None
        if rollout.final_bar is not None:
            market = agent.policy.embed(agent.windows(rollout.rows).at(rollout.by_member(rollout.final_bar[which])))
        with agent.precision():
            kept = policy.remember(market, rollout.by_member(rollout.final_state[which]), kept)
            found = policy.heads(None, kept, policy.critic)[0].squeeze(-1)
        final[which] = rollout.by_time(found, count)
    return rollout.sequences_by_time(value, steps + 1), final
