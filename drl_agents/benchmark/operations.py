"""How many operations an iteration takes: the products of matrices that torch counts as they are done."""

from __future__ import annotations

from dataclasses import replace

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from drl_agents.benchmark.work import Configuration, Work, build_agent, build_env
from environments.market import Market


def iteration_operations(configuration: Configuration, work: Work, market: Market) -> int:
    """Multiplications and additions in the matrix products of one iteration, gradients included.

    Counted uncompiled (https://docs.pytorch.org/docs/stable/generated/torch.utils.flop_counter.FlopCounterMode.html),
    with attention as plain products: the fused kernel's are none that torch sees.
    """
    eager = replace(configuration, agent={**configuration.agent, "compile": "off"})
    env = build_env(eager, work, market)
    agent = build_agent(eager, work, env, [work.seed + p for p in range(configuration.n_members)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        agent.update(agent.explore_env(env, configuration.horizon(work)))
    return counter.get_total_flops()
