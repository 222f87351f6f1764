"""Activations that cost little: compiled, tanh is a quotient of polynomials that fuses with what is around it."""

from __future__ import annotations

import torch
from torch import Tensor

# tanh(x) = x P(x^2) / Q(x^2) to a few units of the last float32 digit; beyond `_END` float32 cannot tell tanh from one.
# Coefficients: the minimax fit that Eigen uses (https://eigen.tuxfamily.org, MathFunctionsImpl.h).
_END = 7.90531110763549805
_ABOVE = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def rational_tanh(x: Tensor) -> Tensor:
    """tanh(x) of float32 `x`, the largest error 4e-7."""
    x = x.clamp(-_END, _END)
    square = x * x
    above, below = _ABOVE[0] * square + _ABOVE[1], _BELOW[0] * square + _BELOW[1]
    for coefficient in _ABOVE[2:]:
        above = above * square + coefficient
    for coefficient in _BELOW[2:]:
        below = below * square + coefficient
    return x * above / below


class _Tanh(torch.autograd.Function):
    """y = tanh(x) in `dtype`, with dy/dx = 1 - y^2 from what was kept for the next layer anyway."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        y = rational_tanh(x).to(dtype)
        ctx.save_for_backward(y)
        ctx.source = x.dtype
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        y = y.to(ctx.source)
        return grad.to(ctx.source) * (1 - y * y), None


def activate(kind: str, x: Tensor) -> Tensor:
    """The activation "tanh" or "relu" of pre-activations, in the precision the next layer multiplies in."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if kind == "relu":
        return torch.relu(x).to(dtype)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():  # a graph for others has a tanh of its own
        return _Tanh.apply(x, dtype)
    # Uncompiled, one kernel of the library is faster than twenty of ours.
    return torch.tanh(x).to(dtype)
