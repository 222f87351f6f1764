"""PerAssetActorCritic: one set of weights for all assets, so that a policy trained on eight symbols runs on thirty.

The assets of a market are a set: each is read by the same weights, together with the mean over all of them, and order
does not matter (Zaheer et al., "Deep Sets", 2017, section 3.1). With x_a what is known of asset a,

    first layer: x_a = [its features of the last L bars | its weight, profit, idle time | the account's cash share]
    each layer:  y_a = f(W x_a + V mean_b(x_b) + c)
    actor:       the action's component a = w y_a + c; of cash, where it has a component of its own, and of a discrete
                 action its logits = w mean_a(y_a) + c
    critic:      w mean_a(y_a) + c

Features are normalised by statistics over all assets. The market's share of the first layer, (P, m, A * H) for each
network, depends on the bar alone and is computed once per bar. A is read off what the policy is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drl_agents.networks.activation import activate
from drl_agents.networks.policy import ActorCritic, spread
from drl_agents.networks.population import PopulationLayerNorm, PopulationLinear
from drl_agents.networks.quantile import QuantileNormalizer
from environments.vec_env import VecEnv

OWN = 4  # numbers of the account that an asset reads: weight, profit, idle time, cash share


class SetNet(nn.Module):
    """The layers of the module's formula and a last one, for P members.

    Args:
        n_market: numbers of the market that are read of each asset, L * F. hidden: widths of the layers.
        each: one output of every asset. n_whole: outputs of their mean, which follow. The others: as for `MLP`.
    """

    def __init__(
        self,
        n_market: int,
        hidden: Sequence[int],
        each: bool,
        n_whole: int,
        activation: str,
        last_gain: float,
        generators: Sequence[torch.Generator],
        layer_norm: bool,
    ) -> None:
        super().__init__()
        p, sizes = len(generators), (n_market + OWN, *hidden)
        self.n_market, self.activation = n_market, activation
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.own, self.mean = (nn.ModuleList(PopulationLinear(p, a, b) for a, b in pairs) for _ in range(2))
        self.norms = nn.ModuleList(PopulationLayerNorm(p, b) for b in hidden) if layer_norm else None
        for linear in (*self.own, *self.mean):
            linear.initialize(2**0.5, generators)
        self.each = PopulationLinear(p, hidden[-1], 1) if each else None
        self.whole = PopulationLinear(p, hidden[-1], n_whole) if n_whole else None
        for last in (self.each, self.whole):
            if last is not None:
                last.initialize(last_gain, generators)

    def embed(self, assets: Tensor) -> Tensor:
        """(P, m, A, L * F) -> the market's share of the first layer's sums (P, m, A, H), biases left out."""
        p, m, a, _ = assets.shape
        own, mean = (layer[0].weight[:, : self.n_market] for layer in (self.own, self.mean))
        alone = torch.bmm(assets.flatten(1, 2), own).view(p, m, a, -1)
        return alone + torch.bmm(assets.mean(2), mean).unsqueeze(2)

    def forward(self, market: Tensor, account: Tensor) -> Tensor:
        """market (P, n, A, H) of `embed`, account (P, n, A, 4) -> (P, n, A if each, and n_whole)."""
        x = market + self._layer(account, 0, self.n_market)
        for i in range(1, len(self.own)):
            x = self._layer(self._activated(x, i - 1), i, 0)
        x = self._activated(x, len(self.own) - 1)
        p, n, a, _ = x.shape
        with torch.autocast(x.device.type, enabled=False):  # as `MLP.rest`
            x = x.float()
            out = [] if self.each is None else [self.each(x.reshape(p, n * a, -1)).view(p, n, a)]
            return torch.cat([*out, *([] if self.whole is None else [self.whole(x.mean(2))])], dim=-1)

    def _layer(self, x: Tensor, layer: int, first: int) -> Tensor:
        """The sums (P, n, A, H) of x (P, n, A, .), which meets the weights from row `first` on."""
        p, n, a, _ = x.shape
        own, mean = self.own[layer], self.mean[layer]
        alone = torch.bmm(x.reshape(p, n * a, -1), own.weight[:, first:]) + own.bias
        return alone.view(p, n, a, -1) + (torch.bmm(x.mean(2), mean.weight[:, first:]) + mean.bias).unsqueeze(2)

    def _activated(self, sums: Tensor, layer: int) -> Tensor:
        if self.norms is not None:
            sums = self.norms[layer](sums.flatten(1, 2)).view(sums.shape)
        return activate(self.activation, sums)


class PerAssetActorCritic(ActorCritic):
    """See the module. The standard deviation of Box actions is one number for all assets."""

    def _build_heads(self, generators: Sequence[torch.Generator]) -> None:
        spec = self.spec

        def net(each: bool, n_whole: int, gain: float) -> SetNet:
            size = spec.lookback * spec.row_size // spec.n_assets
            return SetNet(size, spec.hidden, each, n_whole, spec.activation, gain, generators, spec.layer_norm)

        box = spec.action == "box"
        self.actor = net(box, self.distribution.head_size - (spec.n_assets if box else 0), 0.01)
        self.critic = net(False, 1, 1.0)

    def fit_normalizer(self, env: VecEnv) -> None:
        """Fit the normaliser to the features of all assets over each member's training bars."""
        features = self.spec.row_size // self.spec.n_assets
        member_rows = [rows.reshape(-1, features) for rows in env.training_rows()]
        if isinstance(self.row_normalizer, QuantileNormalizer):
            self.row_normalizer.fit(member_rows)
        else:
            stats = [_moments(rows) for rows in member_rows]
            self.row_normalizer.set(torch.stack([m for m, _ in stats]), torch.stack([s for _, s in stats]))
        self.forget()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Dense observations (P, n, L * A * F + 1 + 3A) of any number of assets, as windows and states."""
        state = 1 + 3 * ((x.shape[-1] - 1) // (self.actor.n_market + 3))
        rows, state = x.split([x.shape[-1] - state, state], dim=-1)
        return self.row_normalizer(rows), state

    def embed(self, windows: Tensor, *nets: SetNet) -> Tensor:
        """Normalised market windows (P, m, L * A * F) -> (P, m, sum of A * H) of `nets`, both unless told."""
        p, m, width = windows.shape
        length, assets = self.spec.lookback, width // self.actor.n_market
        by_asset = windows.view(p, m, length, assets, -1).transpose(2, 3).reshape(p, m, assets, -1)
        return torch.cat([net.embed(by_asset).flatten(2) for net in nets or (self.actor, self.critic)], dim=-1)

    def heads(self, market: Tensor, state: Tensor, *nets: SetNet) -> list[Tensor]:
        """As of `ActorCritic`, with what `embed` gave of the same nets."""
        nets = nets or (self.actor, self.critic)
        if market.shape[1] != state.shape[1]:
            market = spread(market, state.shape[1] // market.shape[1])
        p, n, k = state.shape
        assets = (k - 1) // 3
        cash, own = state.split([1, k - 1], dim=-1)
        account = torch.cat([own.view(p, n, 3, assets), cash.unsqueeze(-1).expand(p, n, 1, assets)], dim=2)
        account = account.transpose(2, 3)
        parts = market.split([assets * net.own[0].weight.shape[2] for net in nets], dim=-1)
        return [net(part.view(p, n, assets, -1), account) for net, part in zip(nets, parts, strict=True)]

    def outputs(self, windows: Tensor, state: Tensor, *nets: SetNet, where: Tensor | None = None) -> list[Tensor]:
        return self.heads(self.embed(windows, *nets), state, *nets)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (F,) of what is known of x (n, F); the deviation 1 of what never moves."""
    wide = x if x.device.type == "mps" else x.double()
    mean = wide.nanmean(0).nan_to_num(0.0)
    std = (wide - mean).square().nanmean(0).sqrt()
    return mean.float(), torch.where(std > 1e-8, std, 1.0).float()
