"""ActorCritic: observation -> action distribution and value, for P members at once.

The policy is a head over (market, account): `embed` turns market windows, through an encoder where there is one, into
the first layer's sums, which depend on the bar alone and are computed once per bar; `heads` adds the account's share
and runs the rest once per sample. A dense
observation (P, n, L * R + K) is the case of one bar per sample. The policy holds its own normalisers: it is the same
object in training, in a back-test, for a plain Gymnasium observation (no market part, R = 0) and live.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drl_agents.networks.distributions import distribution_for
from drl_agents.networks.normalizer import FixedNormalizer, MarketWindows, state_normalizer
from drl_agents.networks.population import MLP, affine, member_generators, missing_lanes
from drl_agents.networks.quantile import QuantileNormalizer
from drl_agents.networks.spec import PolicySpec
from drl_agents.networks.transformer import TransformerEncoder
from environments.vec_env import VecEnv


class ActorCritic(nn.Module):
    """Actor and critic of P members, each an MLP over the normalised observation.

    With an encoder (a transformer) they are MLPs over the embedding that it makes of the market and they share, and
    the account.

    Args:
        seeds: one per member; a member's initial weights depend on its own seed alone.

    Attributes:
        memory_size: M, numbers of an environment's memory; 0 where the policy has none, see `RecurrentActorCritic`.
        why_uncompiled: what keeps the policy from being compiled, None where nothing does.
    """

    memory_size = 0
    why_uncompiled: str | None = None

    def __init__(self, spec: PolicySpec, seeds: Sequence[int]) -> None:
        super().__init__()
        self.spec, self.n_members = spec, len(seeds)
        self.distribution = distribution_for(spec.action_space, spec.distribution)
        generators = list(member_generators(seeds, stream=0))
        self.encoder: nn.Module | None = None
        self._build_heads(generators)
        self.log_std = (
            nn.Parameter(torch.full((self.n_members, 1, 1 if spec.per_asset else spec.action_size), spec.log_std))
            if self.distribution.has_log_std
            else None
        )
        kind = QuantileNormalizer if spec.normalizer == "quantile" else FixedNormalizer
        # One row of statistics serves as many assets as lie side by side.
        width = spec.row_size // spec.n_assets if spec.per_asset else spec.row_size
        self.row_normalizer = kind(self.n_members, width) if width else None
        # A market's account vector is of order one by construction; what else is observed is not.
        self.state_normalizer = (
            None if spec.row_size else state_normalizer(spec.normalizer, self.n_members, spec.state_size)
        )
        self._windows: MarketWindows | None = None
        self.register_load_state_dict_post_hook(lambda module, keys: module.forget())

    def _build_heads(self, generators: Sequence[torch.Generator]) -> None:
        spec = self.spec
        trunk = (self._build_trunk(generators), *spec.hidden)

        def head(size: int, gain: float) -> MLP:
            return MLP(self.n_members, (*trunk, size), spec.activation, gain, generators, spec.layer_norm)

        self.actor = head(self.distribution.head_size, 0.01)
        self.critic = head(1, 1.0) if spec.value else None

    def _build_trunk(self, generators: Sequence[torch.Generator]) -> int:
        """Build what comes before the heads; returns how many numbers they read."""
        if self.spec.network not in ("transformer", "lightweight"):
            return self.spec.size
        self.encoder = TransformerEncoder(self.spec.row_size, self.spec.lookback, generators, **self.spec.options)
        return self.encoder.size + self.spec.state_size

    def forget(self) -> None:
        """Statistics have changed: what was normalised by the old ones is no longer of use."""
        self._windows = None

    def fit_normalizer(self, env: VecEnv) -> None:
        """Fit the market's normaliser to each member's training bars; nothing to do outside a market.

        A standard one takes mean and standard deviation, a quantile one the quantiles of every feature.
        """
        if isinstance(self.row_normalizer, QuantileNormalizer):
            self.row_normalizer.fit(env.training_rows())
        elif self.row_normalizer is not None:
            self.row_normalizer.set(*env.normalizer_stats())
        self.forget()

    def windows(self, rows: Tensor) -> MarketWindows:
        """The windows of a market's rows (B, R), NaN where unknown, as the networks read them."""
        # What is normalised is known once the statistics are: once per bar, where the table is not too large.
        known = self._windows
        if known is None or known.rows is not rows:
            self._windows = known = MarketWindows(rows, self.spec.lookback, self.row_normalizer, self.n_members)
        return known

    def embed(self, windows: Tensor, *nets: MLP) -> Tensor:
        """Normalised market windows (P, m, L * R) -> the market's share of the first layers' sums of `nets` (both
        unless told), side by side, biases left out: (P, m, sum of their widths)."""
        return market_sums(self.encode(windows), nets or (self.actor, self.critic))

    def encode(self, windows: Tensor) -> Tensor:
        """Normalised market windows (P, m, L * R) -> what the heads read of them, the windows or (P, m, E)."""
        return windows if self.encoder is None else self.encoder(windows)

    def heads(self, market: Tensor | None, state: Tensor, *nets: MLP) -> list[Tensor]:
        """What each of `nets` (both unless told) makes of embedded bars and accounts.

        Args:
            market: (P, m, .) of `embed` with the same nets, each row serving n / m samples that follow one another;
                None outside a market.
            state: (P, n, K).

        Returns:
            (P, n, head size) of the actor, (P, n, 1) of the critic.
        """
        nets = nets or (self.actor, self.critic)
        if market is None:
            state = self.state_normalizer(state)
        if self._one_operation(state, nets):
            parts = [None] * len(nets) if market is None else market.split([net.width for net in nets], dim=-1)
            return [net.at_once(state, part) for net, part in zip(nets, parts, strict=True)]
        seen = with_one(state)
        weight = first_weights(nets, -state.shape[-1])
        if market is None:
            first = torch.bmm(seen, weight)
        else:
            if market.shape[1] != state.shape[1]:
                market = spread(market, state.shape[1] // market.shape[1])
            first = affine(seen, weight, market)
        return self._rest(first, nets)

    def _one_operation(self, x: Tensor, nets: Sequence[MLP]) -> bool:
        return all(net.takes_at_once(x) for net in nets)

    def _rest(self, first: Tensor, nets: Sequence[MLP]) -> list[Tensor]:
        return [net.rest(own) for net, own in zip(nets, first.split([net.width for net in nets], dim=-1), strict=True)]

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Dense observations (P, n, L * R + K) as normalised market windows and states."""
        if self.row_normalizer is None:
            return None, x
        rows, state = x.split([x.shape[-1] - self.spec.state_size, self.spec.state_size], dim=-1)
        return self.row_normalizer(rows), state

    def outputs(self, windows: Tensor | None, state: Tensor, *nets: MLP, where: Tensor | None = None) -> list[Tensor]:
        """`heads` of normalised market windows (P, m, L * R), each serving n / m samples, and states (P, n, K).

        where: (P, m), the samples' windows by their place among those given, of which there may be fewer.
        """
        nets = nets or (self.actor, self.critic)
        if windows is None:
            return self.heads(None, state, *nets)
        market = self.encode(windows)
        if where is not None:
            market = market.gather(1, where.unsqueeze(-1).expand(-1, -1, market.shape[-1]))
        if market.shape[1] != state.shape[1]:
            return self.heads(market_sums(market, nets), state, *nets)
        # One window for each sample: one product of both parts is less work than two.
        if self._one_operation(market, nets):
            return [net.at_once(torch.cat([market, state], dim=-1)) for net in nets]
        seen, weights = with_one(state, market), first_weights(nets)
        if missing := seen.shape[-1] - weights.shape[1]:
            weights = nn.functional.pad(weights, (0, 0, 0, missing))
        return self._rest(torch.bmm(seen, weights), nets)

    def dense(self, x: Tensor, *nets: MLP) -> list[Tensor]:
        """`heads` of dense observations (P, n, L * R + K)."""
        return self.outputs(*self.split(x), *nets)

    def mode(self, x: Tensor) -> Tensor:
        """x (P, n, D) -> the most likely actions (P, n, ...)."""
        return self.distribution.mode(self.dense(x, self.actor)[0])

    def value(self, x: Tensor) -> Tensor:
        """x (P, n, D) -> values (P, n)."""
        return self.dense(x, self.critic)[0].squeeze(-1)

    def evaluate(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log probability of `action`, entropy, value), each (P, n)."""
        return self(*self.split(x), action)

    def forward(
        self, windows: Tensor | None, state: Tensor, action: Tensor, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`evaluate` of normalised market windows (P, m, L * R), each serving n / m samples that follow one another,
        and states (P, n, K). where: as for `outputs`."""
        head, value = self.outputs(windows, state, where=where)
        log_prob, entropy = self.distribution.log_prob_entropy(head, self.log_std, action)
        return log_prob, entropy, value.squeeze(-1)


def with_one(state: Tensor, market: Tensor | None = None) -> Tensor:
    """(P, n, K) -> (P, n, K + 1): a last column of ones, by which a product adds the bias and sums its gradient.

    With a market's share (P, n, E) before it (P, n, E + K + 1), and behind it, where whole vector registers are faster,
    columns of zeros.
    """
    one = torch.ones_like(state[..., :1])
    if market is None:
        return torch.cat([state, one], dim=-1)
    zeros = state.new_zeros(*state.shape[:-1], missing_lanes(market.shape[-1] + state.shape[-1] + 1, state.device))
    return torch.cat([market, state, one, zeros], dim=-1)


def first_weights(nets: Sequence[MLP], first: int = 0) -> Tensor:
    """(P, L * R + K + 1, sum of widths): the first layers of `nets` side by side, the biases as the last row; from row
    `first` on."""
    own = [torch.cat([net.layers[0].weight[:, first:], net.layers[0].bias], dim=1) for net in nets]
    return torch.cat(own, dim=-1)


def market_sums(encoded: Tensor, nets: Sequence[MLP]) -> Tensor:
    """What is read of bars (P, m, E) -> its share of the first layers' sums of `nets`, side by side (P, m, .)."""
    weights = [net.layers[0].weight[:, : encoded.shape[-1]] for net in nets]
    if encoded.shape[1] < encoded.shape[2]:  # fewer rows than weights have: they are the larger part, and stay in place
        return torch.cat([torch.bmm(encoded, weight) for weight in weights], dim=-1)
    return torch.bmm(encoded, torch.cat(weights, dim=-1))


def spread(x: Tensor, times: int) -> Tensor:
    """(P, m, W) -> (P, m * times, W), every row `times` times in succession."""
    return x.unsqueeze(2).expand(-1, -1, times, -1).flatten(1, 2)
