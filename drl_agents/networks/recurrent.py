"""RecurrentActorCritic: a policy that remembers what it has seen of the market and of its account.

    encoder: [market window | account] -> linear, LayerNorm, activation, dropout, twice (the market's share of the first
             product depends on the bar alone and is computed once per bar)
    GRU:     over time, its memory carried from bar to bar and forgotten where an episode begins
    heads:   layers of their own for actor and critic, over the memory alone

So to act is to `remember` and then to ask the heads with the memory in the place of the account. In the update the unit
is the sequence: all T steps of an environment from the memory it began the rollout with, not shuffled steps.

Dropout silences the same units of the encoder for a whole rollout of an environment, when it acts and when it learns
from that (Hausknecht & Wagener, "Consistent Dropout for Policy Gradient Reinforcement Learning", 2022; through time:
Gal & Ghahramani, 2016): drawn anew in the update, the ratio of new to old probabilities would be its noise. What is
judged is the whole network. The factors of the units travel with the memory: with dropout, training's memory is
(P, n, M + 2H), the last 2H numbers the factors of the two layers' units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drl_agents.networks.activation import activate
from drl_agents.networks.gru import PopulationGRU
from drl_agents.networks.policy import ActorCritic, first_weights, spread, with_one
from drl_agents.networks.population import MLP, PopulationLayerNorm, PopulationLinear, affine


class RecurrentActorCritic(ActorCritic):
    """See the module. Where the policy's functions take no memory, an episode has just begun."""

    def _build_trunk(self, generators: Sequence[torch.Generator]) -> int:
        options = self.spec.options
        size = self.hidden_dim = options["hidden_dim"]
        p = len(generators)
        self.layers = nn.ModuleList([PopulationLinear(p, self.spec.size, size), PopulationLinear(p, size, size)])
        for layer in self.layers:
            layer.initialize(2**0.5, generators)
        self.norms = nn.ModuleList(PopulationLayerNorm(p, size) for _ in self.layers)
        self.gru = PopulationGRU(size, options["n_gru_layers"], generators)
        return size

    # ------------------------------------------------------------------------------------------- remembering

    @property
    def memory_size(self) -> int:
        return self.gru.memory_size

    def initial_memory(self, n: int, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """(P, n, M) zeros; with generators, one per member, for training: with the factors of dropout, if there is any,
        each 0 with its probability and 1 / (1 - probability) otherwise."""
        weight = self.layers[0].weight
        memory = weight.new_zeros(self.n_members, n, self.memory_size)
        rate = self.spec.options["dropout"]
        if generators is None or not rate:
            return memory
        shape = (n, 2 * self.hidden_dim)
        kept = [torch.rand(shape, generator=g, device=g.device) >= rate for g in generators]
        return torch.cat([memory, torch.stack(kept).to(weight) / (1 - rate)], dim=-1)

    def forget_ended(self, memory: Tensor, done: Tensor) -> Tensor:
        """`memory` (P, n, M) with what is remembered of episodes that are `done` (P, n) set to zero."""
        kept = memory[..., : self.memory_size].masked_fill(done.unsqueeze(-1), 0.0)
        return torch.cat([kept, memory[..., self.memory_size :]], dim=-1)

    def remember(self, market: Tensor | None, state: Tensor, memory: Tensor) -> Tensor:
        """The memory after seeing embedded bars (P, m, H), each serving n / m samples, and accounts (P, n, K)."""
        kept, factors = self._parts(memory)
        after = self.gru.step(self._encoded(market, state, factors), kept)
        return after if factors is None else torch.cat([after, factors], dim=-1)

    def unroll(self, windows: Tensor | None, state: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """The memories after each step of whole sequences, M numbers each.

        Args:
            windows: (P, S * T, L * R) of S clocks, one sequence after the other, or None; each serves n / (S * T)
                environments, which follow one another.
            state: (P, n, K). begins: (P, n) bool, where an episode begins.
            memory: (P, environments, M) before the first step, M + 2H wide with dropout.

        Returns:
            (P, n, M)
        """
        p, n = state.shape[:2]
        market = None if windows is None else self.embed(windows)
        each = 1 if windows is None else n // windows.shape[1]
        clocks = memory.shape[1] // each
        layout = (p, clocks, n // memory.shape[1], each, -1)
        kept, factors = self._parts(memory)
        if factors is not None:
            factors = factors.view(p, clocks, 1, each, -1).expand(*layout).reshape(p, n, -1)
        x = self._encoded(market, state, factors)

        def by_time(y: Tensor) -> Tensor:
            """(P, n, .) -> (T, P, environments, .)"""
            return y.reshape(layout).permute(2, 0, 1, 3, 4).flatten(2, 3)

        out = self.gru.unroll(by_time(x), kept, by_time(begins.unsqueeze(-1)).squeeze(-1))
        return out.unflatten(2, (clocks, each)).permute(1, 2, 0, 3, 4).reshape(p, n, -1)

    def _parts(self, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        kept, factors = memory[..., : self.memory_size], memory[..., self.memory_size :]
        return kept, factors if factors.shape[-1] else None

    def _encoded(self, market: Tensor | None, state: Tensor, factors: Tensor | None) -> Tensor:
        """(P, n, H) of embedded bars, accounts and, with dropout, factors (P, n, 2H)."""
        first = self.layers[0]
        if market is None:
            x = first(self.state_normalizer(state))
        else:
            if market.shape[1] != state.shape[1]:
                market = spread(market, state.shape[1] // market.shape[1])
            # The biases with the account's share, which is computed for every sample anyway.
            weight = torch.cat([first.weight[:, -state.shape[-1] :], first.bias], dim=1)
            x = affine(with_one(state), weight, market)
        own = (None, None) if factors is None else factors.chunk(2, dim=-1)
        x = self._activated(x, 0, own[0])
        return self._activated(self.layers[1](x), 1, own[1])

    def _activated(self, sums: Tensor, layer: int, factors: Tensor | None) -> Tensor:
        x = activate(self.spec.activation, self.norms[layer](sums))
        return x if factors is None else x * factors.to(x.dtype)

    # -------------------------------------------------------------------------------------- market and heads

    def embed(self, windows: Tensor, *nets: MLP) -> Tensor:
        """Normalised market windows (P, m, L * R) -> the market's share of the encoder's first sums (P, m, H)."""
        return torch.bmm(windows, self.layers[0].weight[:, : windows.shape[-1]])

    def heads(self, market: None, state: Tensor, *nets: MLP) -> list[Tensor]:
        """What each of `nets` (both unless told) makes of memories (P, n, at least M) in the place of the account."""
        nets = nets or (self.actor, self.critic)
        seen = state[..., self.memory_size - self.hidden_dim : self.memory_size]
        return self._rest(torch.bmm(with_one(seen), first_weights(nets)), nets)

    def outputs(self, windows: Tensor | None, state: Tensor, *nets: MLP, where: Tensor | None = None) -> list[Tensor]:
        """`heads` at the first step of an episode."""
        if where is not None:
            windows = windows.gather(1, where.unsqueeze(-1).expand(-1, -1, windows.shape[-1]))
        market = None if windows is None else self.embed(windows)
        return self.heads(None, self.remember(market, state, self.initial_memory(state.shape[1])), *nets)

    def play(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Dense observations (P, n, D) and memories (P, n, M) -> the most likely actions, the memories after it."""
        memory = self._remembered(x, memory)
        return self.distribution.mode(self.heads(None, memory, self.actor)[0]), memory

    def value(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x (P, n, D), memory before it -> values (P, n)."""
        memory = self.initial_memory(x.shape[1]) if memory is None else memory
        return self.heads(None, self._remembered(x, memory), self.critic)[0].squeeze(-1)

    def _remembered(self, x: Tensor, memory: Tensor) -> Tensor:
        windows, state = self.split(x)
        return self.remember(None if windows is None else self.embed(windows), state, memory)

    def forward(
        self,
        windows: Tensor | None,
        state: Tensor,
        action: Tensor,
        where: Tensor | None = None,
        memory: Tensor | None = None,
        begins: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(log probability of `action`, entropy, value), each (P, n), of whole sequences, laid out as for `unroll`;
        without a memory, of first steps."""
        if memory is None:
            return super().forward(windows, state, action, where)
        head, value = self.heads(None, self.unroll(windows, state, memory, begins))
        log_prob, entropy = self.distribution.log_prob_entropy(head, self.log_std, action)
        return log_prob, entropy, value.squeeze(-1)
