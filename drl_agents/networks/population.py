"""Networks of P members at once: every parameter has a leading population axis.

A member's numbers depend on nothing of the others, so training one inside a population gives what
training it alone gives. One network is a population of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from drl_agents.networks.activation import activate
from drl_agents.networks.native.mlp import mlp, usable
from environments.errors import InputError

# Parameters and gradients are strided views of one flat tensor, on purpose.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


_LANES = 16  # float32 numbers in the widest vector register of a CPU


class PopulationLinear(nn.Module):
    """y = x W + b for each of P members. x: (P, n, in) -> (P, n, out). Weight: (P, in, out), bias: (P, 1, out)."""

    def __init__(self, n_members: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_members, n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))

    def initialize(self, gain: float, generators: Sequence[torch.Generator]) -> None:
        """Orthogonal weights (Saxe et al., 2014), zero bias; member p draws from generator p alone."""
        with torch.no_grad():
            for weight, generator in zip(self.weight, generators, strict=True):
                # On the CPU: the same weights whatever device the network then lives on.
                drawn = torch.empty(weight.shape[1], weight.shape[0])
                nn.init.orthogonal_(drawn, gain, generator=generator)
                weight.copy_(drawn.T)
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[0] == 1 and self.weight.shape[2] == 1 and not torch.compiler.is_compiling():
            # One member with one output is a matrix times a vector, which rounds otherwise than the same member beside
            # others: taken twice, it is rounded as they are, and training alone equals training in a population.
            return affine(x.expand(2, -1, -1), self.weight.expand(2, -1, -1), self.bias.expand(2, -1, -1))[:1]
        return affine(x, self.weight, self.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b for each of P members: x (P, n, in), weight (P, in, out), bias (P, 1 or n, out)."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return torch.baddbmm(bias.to(weight.dtype), x, weight)
    n_out = weight.shape[2]
    if 1 < n_out < _LANES and (missing := missing_lanes(n_out, x.device)):
        # A product with ten columns takes three times as long as one with sixteen.
        return torch.bmm(x, nn.functional.pad(weight, (0, missing)))[..., :n_out] + bias
    return torch.bmm(x, weight) + bias  # the sum is fused with what comes next


def missing_lanes(size: int, device: torch.device) -> int:
    """Numbers that a row of `size` lacks to fill whole vector registers; 0 where what fills them is not worth writing:
    uncompiled, or not on a CPU."""
    return -size % _LANES if torch.compiler.is_compiling() and device.type == "cpu" else 0


class PopulationLayerNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) with each member's own gain and shift: (P, n, D) -> (P, n, D), float32.

    y = (x - mean(x)) / sqrt(var(x) + 1e-5) * gain + shift, the moments over D
    """

    def __init__(self, n_members: int, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(n_members, 1, size))
        self.shift = nn.Parameter(torch.zeros(n_members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.float(), x.shape[-1:]) * self.gain + self.shift


class MLP(nn.Module):
    """Fully connected layers with tanh or ReLU between them, for P members; with `layer_norm`, their sums normalised.

    Hidden layers start orthogonal with gain sqrt(2), the last with `last_gain` (Andrychowicz et al., "What Matters in
    On-Policy Reinforcement Learning?", 2021: a small last layer of the policy, 0.01, matters).
    """

    def __init__(
        self,
        n_members: int,
        sizes: Sequence[int],
        activation: str,
        last_gain: float,
        generators: Sequence[torch.Generator],
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PopulationLinear(n_members, a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.norms = nn.ModuleList(PopulationLayerNorm(n_members, b) for b in sizes[1:-1]) if layer_norm else None
        self.activation = activation
        for layer in self.layers:
            layer.initialize(last_gain if layer is self.layers[-1] else 2**0.5, generators)

    @property
    def width(self) -> int:
        """Outputs of the first layer."""
        return self.layers[0].weight.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        """(P, n, sizes[0]) -> (P, n, sizes[-1])."""
        return self.at_once(x) if self.takes_at_once(x) else self.rest(self.layers[0](x))

    def takes_at_once(self, x: Tensor) -> bool:
        """Whether `at_once` is the faster way for x (P, n, .)."""
        return self.norms is None and usable(x, self.layers[0].weight.shape[1])

    def at_once(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        """As `forward`, by one operation. Where x (P, n, K) is the end of what is read, `first` (P, m, width) is the
        first layer's sums of what comes before it, each row of n / m samples in succession."""
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        weights[0] = weights[0][:, -x.shape[-1] :]
        return mlp(x, weights, biases, self.activation == "relu", first)

    def rest(self, x: Tensor) -> Tensor:
        """What follows the first layer's sums (P, n, width) -> (P, n, sizes[-1]).

        The last layer is computed in float32 whatever the precision of the others: a value or a mean of three digits
        would be the noise that the loss then learns.
        """
        for i, layer in enumerate(self.layers[1:-1]):
            x = layer(self._activated(x, i))
        with torch.autocast(x.device.type, enabled=False):
            # Activated in here: rounded for a product to come, it would be worked out again for its gradient.
            x = self._activated(x, len(self.layers) - 2)
            return self.layers[-1](x.to(self.layers[-1].weight.dtype))

    def _activated(self, sums: Tensor, layer: int) -> Tensor:
        return activate(self.activation, sums if self.norms is None else self.norms[layer](sums))


class FlatPart(NamedTuple):
    """Some of the columns of flat parameters. values: (P, D'), a view."""

    values: Tensor


class FlatParameters:
    """All parameters of a module in one (P, D) tensor.

    The parameters become views of the flat tensor, so norms, clipping and the optimiser are a few operations however
    many layers there are. The module must not be moved to another device or dtype afterwards.
    """

    def __init__(self, module: nn.Module, n_members: int) -> None:
        named = dict(module.named_parameters())
        for name, parameter in named.items():
            if parameter.shape[0] != n_members:
                raise ValueError(f"{name} of shape {tuple(parameter.shape)} has no population axis of {n_members}")
        self.shapes = {name: tuple(p.shape) for name, p in named.items()}
        self.widths = [p.numel() // n_members for p in named.values()]
        first = next(iter(named.values()))
        self.values = torch.empty(n_members, sum(self.widths), dtype=first.dtype, device=first.device)
        for parameter, view in zip(named.values(), self.views().values(), strict=True):
            view.copy_(parameter.data)
            parameter.data = view

    def split(self, prefix: str) -> tuple[FlatPart, FlatPart]:
        """The parameters before those whose names begin with `prefix`, and those, which are the last ones.

        Raises:
            InputError: they are not: the network shares what they would be with the rest.
        """
        ours = [name.startswith(prefix) for name in self.shapes]
        first = ours.index(True) if any(ours) else 0
        if not (first > 0 and all(ours[first:])):
            raise InputError(f"the network has no {prefix.rstrip('.')} of its own that could be trained by itself")
        width = sum(self.widths[:first])
        return FlatPart(self.values[:, :width]), FlatPart(self.values[:, width:])

    def views(self) -> dict[str, Tensor]:
        """The parameters by name, as views of the flat tensor that know no gradient."""
        pieces = self.values.detach().split(self.widths, dim=1)
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes, in their order, as one (P, D)."""
        return torch.cat([t.reshape(self.values.shape[0], -1) for t in tensors], dim=1)


def member_state(module: nn.Module, member: int) -> dict[str, Tensor]:
    """The state of one member, with a population axis of one: fits the same network built for one member."""
    return {name: value[member : member + 1].clone() for name, value in module.state_dict().items()}


def member_generators(
    seeds: Sequence[int], stream: int, device: torch.device | str = "cpu"
) -> Iterator[torch.Generator]:
    """One generator per member; different `stream`s of one seed are independent of each other.

    On a GPU they draw there: numbers drawn on the host would have to cross to it in every rollout.
    """
    own = torch.device(device) if torch.device(device).type == "cuda" else torch.device("cpu")
    for seed in seeds:
        yield torch.Generator(own).manual_seed((seed * 1_000_003 + stream * 7_919 + 12_345) % 2**63)
