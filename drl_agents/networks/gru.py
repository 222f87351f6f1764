"""A gated recurrent unit over time, for P members at once, with memories that are cut where an episode begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drl_agents.networks.population import PopulationLinear


class PopulationGRU(nn.Module):
    """Layers of gated recurrent units (Cho et al., 2014), in the form and order of gates of torch.nn.GRU:

        r = sigmoid(W_r x + U_r h),  z = sigmoid(W_z x + U_z h),  n = tanh(W_n x + r * (U_n h)),  each with its biases
        h' = (1 - z) * n + z * h

    https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html

    Args:
        size: H, of what is read and of each layer's memory. n_layers: how many. generators: one per member.
    """

    def __init__(self, size: int, n_layers: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.size = size
        p = len(generators)
        self.read = nn.ModuleList(PopulationLinear(p, size, 3 * size) for _ in range(n_layers))
        self.recall = nn.ModuleList(PopulationLinear(p, size, 3 * size) for _ in range(n_layers))
        for linear in (*self.read, *self.recall):
            linear.initialize(1.0, generators)

    @property
    def memory_size(self) -> int:
        """M, numbers of all layers' memories."""
        return len(self.read) * self.size

    def step(self, x: Tensor, memory: Tensor) -> Tensor:
        """One step: x (P, n, H), memory (P, n, M) -> the memory after it, whose last H numbers are the output."""
        after = []
        for read, recall, h in zip(self.read, self.recall, memory.split(self.size, dim=-1), strict=True):
            x = _gated(read(x), recall(h), h)[0]
            after.append(x)
        return torch.cat(after, dim=-1)

    def unroll(self, x: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """T steps: x (T, P, n, H), memory (P, n, M) before the first, begins (T, P, n) bool, where an episode begins
        and what was before is forgotten -> the memories after each step, (T, P, n, M).

        A layer's share of what it reads is one product for all T steps, and so is the gradient of its weights.
        """
        steps, p, n = x.shape[:3]
        keep = (~begins).unsqueeze(-1).to(memory.dtype)
        layers = []
        for read, recall, first in zip(self.read, self.recall, memory.split(self.size, dim=-1), strict=True):
            sums = read(x.transpose(0, 1).reshape(p, steps * n, -1)).float().view(p, steps, n, -1).transpose(0, 1)
            x = _Unroll.apply(sums, recall.weight, recall.bias, first, keep)
            layers.append(x)
        return torch.cat(layers, dim=-1)


def _gated(read: Tensor, recalled: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(h', r and z side by side, n, U_n h) of both shares (P, n, 3H) of the gates' sums, in float32."""
    size = h.shape[-1]
    (rz_x, n_x), (rz_h, n_h) = (x.float().split([2 * size, size], dim=-1) for x in (read, recalled))
    gates = torch.sigmoid(rz_x + rz_h)
    r, z = gates.chunk(2, dim=-1)
    fresh = torch.tanh(torch.addcmul(n_x, r, n_h))
    return torch.lerp(fresh, h, z), gates, fresh, n_h


class _Unroll(torch.autograd.Function):
    """All steps of a layer: sums (T, P, n, 3H) of what it reads, its weights, memory, and 1 or 0 where that is kept.

    With d the gradient of h', a step back is

        dn = d (1 - z) (1 - n^2),  dz = d (h - n) z (1 - z),  dr = dn (U_n h) r (1 - r)
        dh = d z + U^T [dr, dz, dn r]

    so all but the last line is d times what the way forward left behind, worked out for all T steps at once, and a step
    back is one product. Autograd's own would be a dozen small operations and a product for the weights besides.
    """

    @staticmethod
    def forward(ctx, sums: Tensor, weight: Tensor, bias: Tensor, first: Tensor, keep: Tensor) -> Tensor:
        h, kept = first, []
        for t in range(sums.shape[0]):
            before = h * keep[t]
            h, *gates = _gated(sums[t], torch.baddbmm(bias, before, weight), before)
            kept.append((h, before, *gates))
        out, *rest = (torch.stack(own) for own in zip(*kept, strict=True))
        ctx.save_for_backward(weight, keep, *rest)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        weight, keep, before, gates, fresh, recalled = ctx.saved_tensors
        r, z = gates.chunk(2, dim=-1)
        by_n = (1 - z) * (1 - fresh.square())
        factors = torch.stack([by_n * recalled * r * (1 - r), (before - fresh) * z * (1 - z), by_n * r], dim=-2)
        back, d_after = weight.transpose(1, 2), torch.zeros_like(grad[0])
        ds, steps = [], []
        for t in reversed(range(grad.shape[0])):
            d = grad[t] + d_after
            step = (d.unsqueeze(-2) * factors[t]).flatten(-2)
            d_after = torch.baddbmm(d * z[t], step, back) * keep[t]
            ds.append(d)
            steps.append(step)
        d, step = (torch.stack(own[::-1]) for own in (ds, steps))
        d_sums = torch.cat([step[..., : 2 * z.shape[-1]], d * by_n], dim=-1)
        before, step = (x.transpose(0, 1).flatten(1, 2) for x in (before, step))
        return d_sums, torch.bmm(before.transpose(1, 2), step), step.sum(1, keepdim=True), d_after, None
