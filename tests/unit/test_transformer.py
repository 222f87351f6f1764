"""The transformer against torch's own layers, and its operations against torch's count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from drl_agents.networks.population import member_generators
from drl_agents.networks.transformer import TransformerEncoder, sinusoids

R, L, D, HEADS = 5, 7, 12, 3


def encoder(layers: int, positions: str, seeds=(1, 2)) -> TransformerEncoder:
    made = TransformerEncoder(R, L, list(member_generators(seeds, 0)), D, layers, HEADS, positions)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():  # biases and gains begin at 0 and 1, where a mistake with them would not show
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return made


def theirs(ours: TransformerEncoder, p: int, windows: torch.Tensor) -> torch.Tensor:
    """Member p's embedding by torch.nn.TransformerEncoder over all positions with a causal mask."""
    layer = nn.TransformerEncoderLayer(D, HEADS, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True)
    stack = nn.TransformerEncoder(layer, len(ours.layers), nn.LayerNorm(D), enable_nested_tensor=False)

    def fill(target, linear) -> None:
        target.weight.copy_(linear.weight[p].T)
        target.bias.copy_(linear.bias[p, 0])

    def norm(target, own) -> None:
        target.weight.copy_(own.gain[p, 0])
        target.bias.copy_(own.shift[p, 0])

    with torch.no_grad():
        for target, own in zip(stack.layers, ours.layers, strict=True):
            attention = target.self_attn
            attention.in_proj_weight.copy_(torch.cat([own.query.weight[p].T, own.key_value.weight[p].T]))
            attention.in_proj_bias.copy_(torch.cat([own.query.bias[p, 0], own.key_value.bias[p, 0]]))
            fill(attention.out_proj, own.projection)
            fill(target.linear1, own.widen)
            fill(target.linear2, own.narrow)
            norm(target.norm1, own.before_attention)
            norm(target.norm2, own.before_feed_forward)
        norm(stack.norm, ours.norm)
    tokens = windows[p].view(-1, L, R) @ ours.rows.weight[p] + ours.rows.bias[p]
    positions = ours.positions[p if ours.positions.shape[0] > 1 else 0]
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    return stack(tokens + positions, mask=mask, is_causal=True)[:, -1]


@pytest.mark.parametrize(("layers", "positions"), [(1, "learned"), (3, "learned"), (2, "sinusoidal")])
def test_each_member_equals_torchs_layers(layers, positions):
    ours = encoder(layers, positions)
    windows = torch.randn(2, 4, L * R, generator=torch.Generator().manual_seed(0))
    found = ours(windows)
    for p in (0, 1):
        assert_close(found[p], theirs(ours, p, windows), rtol=1e-5, atol=1e-5)


def test_sinusoids_by_hand():
    found = sinusoids(3, 4)
    assert found[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert found[2].tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)], rel=1e-6)


def test_the_order_of_the_bars_matters():
    ours = encoder(2, "learned")
    windows = torch.randn(2, 1, L, R, generator=torch.Generator().manual_seed(0))
    swapped = windows.clone()
    swapped[:, :, [0, 1]] = windows[:, :, [1, 0]]
    assert not torch.allclose(ours(windows.flatten(2)), ours(swapped.flatten(2)), atol=1e-4)


@pytest.mark.parametrize("layers", [1, 3])
def test_operations_are_those_torch_counts(layers):
    ours = encoder(layers, "learned", seeds=(1,))
    # The fused kernel's products are none that torch counts.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        ours(torch.zeros(1, 6, L * R))
    assert counter.get_total_flops() == 6 * ours.operations()
