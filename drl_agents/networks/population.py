"""Networks of P members at once: every parameter has a leading population axis.

A member's numbers depend on nothing of the others, so training one inside a population gives what
training it alone gives. One network is a population of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

# Parameters and gradients are strided views of one flat tensor, on purpose.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


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
        if self.weight.shape[0] == 1 and self.weight.shape[2] == 1 and x.device.type == "cpu":
            # One member with one output is a matrix times a vector, which rounds otherwise than the same member beside
            # others: taken twice, it is rounded as they are, and training alone equals training in a population.
            twice = torch.baddbmm(self.bias.expand(2, -1, -1), x.expand(2, -1, -1), self.weight.expand(2, -1, -1))
            return twice[:1]
        return torch.baddbmm(self.bias, x, self.weight)


class MLP(nn.Module):
    """Fully connected layers with tanh or ReLU between them, for P members.

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
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PopulationLinear(n_members, a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        for layer in self.layers:
            layer.initialize(last_gain if layer is self.layers[-1] else 2**0.5, generators)

    def forward(self, x: Tensor) -> Tensor:
        """(P, n, sizes[0]) -> (P, n, sizes[-1])."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class FlatParameters:
    """All parameters of a module in one (P, D) tensor, and their gradients in another.

    The parameters become views of the flat tensor, so norms, clipping and the optimiser are a few operations however
    many layers there are. The module must not be moved to another device or dtype afterwards.
    """

    def __init__(self, module: nn.Module, n_members: int) -> None:
        parameters = list(module.parameters())
        for parameter in parameters:
            if parameter.shape[0] != n_members:
                raise ValueError(f"parameter of shape {tuple(parameter.shape)} has no population axis of {n_members}")
        widths = [p.numel() // n_members for p in parameters]
        first = parameters[0]
        self.values = torch.empty(n_members, sum(widths), dtype=first.dtype, device=first.device)
        self.grads = torch.zeros_like(self.values)
        offset = 0
        for parameter, width in zip(parameters, widths, strict=True):
            shape, span = parameter.shape, slice(offset, offset + width)
            view = self.values[:, span].view(shape)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.grads[:, span].view(shape)
            offset += width

    def zero_grad(self) -> None:
        self.grads.zero_()


def member_state(module: nn.Module, member: int) -> dict[str, Tensor]:
    """The state of one member, with a population axis of one: fits the same network built for one member."""
    return {name: value[member : member + 1].clone() for name, value in module.state_dict().items()}


def member_generators(seeds: Sequence[int], stream: int) -> Iterator[torch.Generator]:
    """One CPU generator per member; different `stream`s of one seed are independent of each other."""
    for seed in seeds:
        yield torch.Generator().manual_seed((seed * 1_000_003 + stream * 7_919 + 12_345) % 2**63)
