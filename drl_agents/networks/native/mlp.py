"""All layers of an MLP as one operation of a compiled function on an x86 CPU, and its gradient as another.

Equal to the layers of `population.MLP` to float32 rounding. See mlp.cpp for what it does and why it is faster.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from drl_agents.networks.native.build import library

# Multiplications and additions that one core makes in the time it takes to wake another.
_WORTH_A_THREAD = 500_000
# Samples of a member below which its weights are more to move than to multiply with.
_FEWEST = 128
# Inputs beyond which a block of samples no longer fits the caches, where a library's blocking over the inputs wins.
_WIDEST = 2_048

_ops = torch.library.Library("drl_agents", "DEF")
_INPUTS = "Tensor x, Tensor[] weights, Tensor?[] biases, bool relu, Tensor? first"
_ops.define(f"mlp(bool keep, {_INPUTS}) -> (Tensor, Tensor)")
_ops.define(f"mlp_backward(Tensor grad, Tensor hidden, bool of_x, {_INPUTS}) -> (Tensor, Tensor, Tensor)")


@torch.compiler.assume_constant_result
def _at_hand() -> bool:
    # Elsewhere it was not timed, and Apple's own products have a unit to themselves.
    return platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin" and library("mlp") is not None


def usable(x: Tensor, widest: int) -> bool:
    """Whether `mlp` is what x (P, n, in) is best multiplied with: in a function that is being compiled for the CPU, in
    float32. widest: inputs of the first layer."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.shape[1] >= _FEWEST
        and widest <= _WIDEST
        and _at_hand()
    )


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    relu: bool,
    first: Tensor | None = None,
) -> Tensor:
    """y = (... act(act(x W_1 + b_1 + f) W_2 + b_2) ...) W_D + b_D for each of P members, act tanh or ReLU.

    Args:
        x: (P, n, in) float32. weights: (P, in, out) each. biases: (P, 1, out) each, or None.
        first: f, (P, m, width of the first layer), each row added to n / m samples that follow one another; of two
            layers at least.

    Returns:
        (P, n, last width)
    """
    if torch.is_grad_enabled():
        return _MLP.apply(x, first, relu, len(weights), *weights, *biases)
    return torch.ops.drl_agents.mlp.default(False, x, list(weights), list(biases), relu, first)[0]


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, first, relu: bool, depth: int, *parameters: Tensor | None) -> Tensor:
        weights, biases = list(parameters[:depth]), list(parameters[depth:])
        out, hidden = torch.ops.drl_agents.mlp.default(True, x, weights, biases, relu, first)
        ctx.save_for_backward(x, hidden, first, *parameters)
        ctx.relu, ctx.depth = relu, depth
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, hidden, first, *parameters = ctx.saved_tensors
        weights, biases = parameters[: ctx.depth], parameters[ctx.depth :]
        of_x = ctx.needs_input_grad[0]
        grads, x_grad, first_grad = torch.ops.drl_agents.mlp_backward.default(
            grad, hidden, of_x, x, weights, biases, ctx.relu, first
        )
        shapes = [one.shape for pair in zip(weights, biases, strict=True) for one in pair if one is not None]
        pieces = iter(grads.split([shape[1] * shape[2] for shape in shapes], dim=1))
        own: list[list[Tensor | None]] = [[], []]
        for weight, bias in zip(weights, biases, strict=True):
            own[0].append(next(pieces).view(weight.shape))
            own[1].append(None if bias is None else next(pieces).view(bias.shape))
        return x_grad if of_x else None, None if first is None else first_grad, None, None, *own[0], *own[1]


def _hidden_row(weights: Sequence[Tensor]) -> int:
    widths = [weight.shape[2] for weight in weights[:-1]]
    return library("mlp").hidden_row((ctypes.c_int64 * max(len(widths), 1))(*widths), len(widths))


def _call(hidden: Tensor, x, weights, biases, relu: bool, first) -> ctypes.Array:
    """The numbers that `Net` in mlp.cpp is made of."""
    p, n = x.shape[:2]
    work = p * n * sum(weight.shape[1] * weight.shape[2] for weight in weights)
    threads = max(1, min(torch.get_num_threads(), work // _WORTH_A_THREAD))
    each = 1 if first is None else n // first.shape[1]
    call = [threads, p, n, len(weights), int(relu), each, x.data_ptr(), _address(first), _address(hidden)]
    for weight, bias in zip(weights, biases, strict=True):
        call += [weight.shape[1], weight.shape[2], weight.data_ptr(), weight.stride(0)]
        call += [0, 0] if bias is None else [bias.data_ptr(), bias.stride(0)]
    return (ctypes.c_int64 * len(call))(*call)


def _address(x: Tensor | None) -> int:
    return 0 if x is None or not x.numel() else x.data_ptr()


def _in_order(x, weights, biases, relu, first):
    """With rows that follow one another, as the C++ reads them; of weights and biases a member's may lie anywhere."""

    def whole(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.contiguous()

    weights = [w if w.stride(2) == 1 and w.stride(1) == w.shape[2] else w.contiguous() for w in weights]
    biases = [b if b is None or b.stride(2) == 1 else b.contiguous() for b in biases]
    return whole(x), weights, biases, relu, whole(first)


@torch.library.impl(_ops, "mlp", "CPU")
def _forward(keep, *inputs):
    inputs = _in_order(*inputs)
    out, hidden = _outputs(keep, *inputs)
    library("mlp").forward(_call(hidden, *inputs), ctypes.c_void_p(out.data_ptr()))
    return out, hidden


@torch.library.impl(_ops, "mlp_backward", "CPU")
def _backward(grad, hidden, of_x, *inputs):
    grad, inputs = grad.contiguous(), _in_order(*inputs)
    gradients = _gradients(grad, hidden, of_x, *inputs)
    library("mlp").backward(_call(hidden, *inputs), *(ctypes.c_void_p(_address(t)) for t in (grad, *gradients)))
    return gradients


@torch.library.register_fake("drl_agents::mlp")
def _outputs(keep, x, weights, *_):
    p, n = x.shape[:2]
    return x.new_empty(p, n, weights[-1].shape[2]), x.new_empty((p, n, _hidden_row(weights)) if keep else 0)


@torch.library.register_fake("drl_agents::mlp_backward")
def _gradients(grad, hidden, of_x, x, weights, biases, relu, first):
    size = sum(one.shape[1] * one.shape[2] for one in (*weights, *biases) if one is not None)
    x_grad = x.new_empty(x.shape if of_x else 0)
    return x.new_empty(x.shape[0], size), x_grad, x.new_empty(0 if first is None else first.shape)
