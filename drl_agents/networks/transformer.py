"""TransformerEncoder: what the last bars of a market say, as one vector per bar, for P members at once.

The embedding of a bar depends on the market alone, so it is computed once per bar and shared by every account that
looks at it; the account joins in the heads of actor and critic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drl_agents.networks.population import PopulationLayerNorm, PopulationLinear

FEED_FORWARD = 4  # units of a layer's hidden product, for each of d_model


def sinusoids(length: int, d_model: int) -> Tensor:
    """(L, d) positions of Vaswani et al. (2017), section 3.5, the even columns sine and the odd ones cosine:

    sin(i / 10000^(2k/d)), cos(i / 10000^(2k/d))
    """
    place = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10_000.0) / d_model))
    return torch.stack([(place * rate).sin(), (place * rate).cos()], dim=-1).flatten(1).float()


class TransformerEncoder(nn.Module):
    """Windows of L bars -> the embedding of their last bar: (P, m, L * R) -> (P, m, d_model), float32.

        x = W window + positions
        for each layer: x = x + attention(norm(x)); x = x + W2 gelu(W1 norm(x))
        out = norm(x of the last bar)

    Attention is causal: a bar looks at itself and at what came before it in the window. So nothing reads what the last
    layer would make of the other bars, and it is not computed. Normalisation comes first in a layer (Xiong et al., "On
    Layer Normalization in the Transformer Architecture", 2020), and what a layer adds begins small (Radford et al.,
    2019), so that no warm-up is needed.

    Args:
        row_size: R. lookback: L. The others: see `TransformerOptions`. generators: one per member, for its weights.
    """

    def __init__(
        self,
        row_size: int,
        lookback: int,
        generators: Sequence[torch.Generator],
        d_model: int,
        num_layers: int,
        n_heads: int,
        positions: str,
    ) -> None:
        super().__init__()
        p = len(generators)
        self.row_size, self.lookback, self.size = row_size, lookback, d_model
        self.rows = PopulationLinear(p, row_size, d_model)
        self.rows.initialize(1.0, generators)
        start = sinusoids(lookback, d_model)
        if positions == "learned":
            drawn = [torch.randn(lookback, d_model, generator=g) * 0.02 for g in generators]
            self.positions = nn.Parameter(torch.stack(drawn))
        else:
            self.register_buffer("positions", start.unsqueeze(0), persistent=False)
        self.layers = nn.ModuleList(_Layer(d_model, n_heads, num_layers, generators) for _ in range(num_layers))
        self.norm = PopulationLayerNorm(p, d_model)

    def forward(self, windows: Tensor) -> Tensor:
        p, m = windows.shape[:2]
        tokens = self.rows(windows.reshape(p, m * self.lookback, self.row_size))
        x = tokens.float().view(p, m, self.lookback, self.size) + self.positions.unsqueeze(1)
        for layer in self.layers[:-1]:
            x = layer(x, self.lookback)
        return self.norm(self.layers[-1](x, 1).flatten(1, 2))

    def operations(self) -> int:
        """Multiplications and additions of one window, of its matrix products alone.

        A product of (a, b) and (b, c) counts 2abc. A layer of k outputs: the keys and values of L bars, and for each
        output its query, its scores and their sum over all L bars (masked products compute them all), the projection
        and the two products of the feed-forward part.
        """
        length, d = self.lookback, self.size

        def layer(k: int) -> int:
            return 2 * length * d * 2 * d + k * (2 * d * d + 4 * length * d + 2 * d * d + 4 * FEED_FORWARD * d * d)

        return 2 * length * self.row_size * d + (len(self.layers) - 1) * layer(length) + layer(1)


class _Layer(nn.Module):
    """One layer: (P, m, L, d) and k -> (P, m, k, d), what it makes of the last k of L bars."""

    def __init__(self, d_model: int, n_heads: int, num_layers: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        p = len(generators)
        self.n_heads = n_heads
        self.before_attention, self.before_feed_forward = (PopulationLayerNorm(p, d_model) for _ in range(2))
        self.query = PopulationLinear(p, d_model, d_model)
        self.key_value = PopulationLinear(p, d_model, 2 * d_model)
        self.projection = PopulationLinear(p, d_model, d_model)
        self.widen = PopulationLinear(p, d_model, FEED_FORWARD * d_model)
        self.narrow = PopulationLinear(p, FEED_FORWARD * d_model, d_model)
        small = 1 / math.sqrt(2 * num_layers)
        for linear, gain in (
            (self.query, 1.0), (self.key_value, 1.0), (self.projection, small), (self.widen, 1.0), (self.narrow, small),
        ):  # fmt: skip
            linear.initialize(gain, generators)

    def forward(self, x: Tensor, k: int) -> Tensor:
        p, m, length, d = x.shape
        last = x[:, :, length - k :]
        seen = self.before_attention(x.reshape(p, m * length, d))
        asked = seen.view(p, m, length, d)[:, :, length - k :].reshape(p, m * k, d)
        query = self._heads(self.query(asked), p * m, k)
        key, value = (self._heads(part, p * m, length) for part in self.key_value(seen).chunk(2, dim=-1))
        # One query, the last bar's, may look at every bar.
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=k > 1)
        mixed = mixed.transpose(1, 2).reshape(p, m * k, d)
        last = last.reshape(p, m * k, d) + self.projection(mixed).float()
        wide = nn.functional.gelu(self.widen(self.before_feed_forward(last)))
        return (last + self.narrow(wide).float()).view(p, m, k, d)

    def _heads(self, x: Tensor, windows: int, bars: int) -> Tensor:
        """(P, windows / P * bars, d) -> (windows, heads, bars, d / heads)."""
        return x.reshape(windows, bars, self.n_heads, -1).transpose(1, 2)
