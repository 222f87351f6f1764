"""build_policy: from a spec to the policy it describes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from drl_agents.networks.per_asset import PerAssetActorCritic
from drl_agents.networks.policy import ActorCritic
from drl_agents.networks.recurrent import RecurrentActorCritic
from drl_agents.networks.spec import PolicySpec
from environments.errors import InputError

MEMORYLESS = ("mlp", "transformer", "lightweight")  # what decides by a window of bars and the account, every time anew


def build_policy(spec: PolicySpec, seeds: Sequence[int], accepted: Collection[str] | None = None) -> ActorCritic:
    """The policy of `spec` for one member per seed; a member's first weights depend on its own seed alone.

    accepted: the networks the caller can train; None: all.

    Raises:
        InputError: the network is not accepted, or a module of the user's own that cannot be had (see
            `drl_agents.networks.foreign`).
    """
    if accepted is not None and spec.network not in accepted:
        raise InputError(f"network={spec.network!r}: accepted with this agent are {', '.join(accepted)}; with ppo, all")
    if ":" in spec.network:
        from drl_agents.networks.foreign import foreign_policy  # it imports this package's policies in turn

        return foreign_policy(spec, seeds)
    if spec.per_asset:
        return PerAssetActorCritic(spec, seeds)
    return (RecurrentActorCritic if spec.network == "gru" else ActorCritic)(spec, seeds)
