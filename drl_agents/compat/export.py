"""Models for other runtimes: one graph from an observation, as the environment gives it, to the action.

    observation  (batch, D) float32, market features first (lookback bars, oldest first), then the account; NaN unknown
    memory       (batch, M) float32, only of networks that remember: zeros at first, then what came out before
    action       (batch, A) float32 in [-1, 1] once clipped, or (batch,) int64

The normaliser is in the graph. What is written is compared with the policy itself before it is left in place.

Formats: ONNX (https://onnx.ai/onnx/), TorchScript (https://docs.pytorch.org/docs/stable/jit.html), and the weights
alone as safetensors (https://huggingface.co/docs/safetensors), with the policy's spec in the file's metadata.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from drl_agents.compat.graph_quantile import GraphQuantileNormalizer
from drl_agents.networks.build import build_policy
from drl_agents.networks.policy import ActorCritic
from drl_agents.networks.quantile import QuantileNormalizer
from drl_agents.networks.spec import PolicySpec
from environments.errors import InputError
from environments.files import write_atomic

TOLERANCE = 1e-5
ROWS = 64  # observations that an exported model is compared on
SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}


class Exported(nn.Module):
    """A policy of one member as a function of observations (batch, D), and of memories (batch, M) where it has some."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        if policy.n_members != 1:
            raise InputError(f"a policy of {policy.n_members} members: one is exported at a time")
        self.policy = copy.deepcopy(policy)
        if isinstance(policy.row_normalizer, QuantileNormalizer):
            self.policy.row_normalizer = GraphQuantileNormalizer(policy.row_normalizer)

    def forward(self, observation: Tensor, memory: Tensor | None = None) -> Any:
        return play(self.policy, observation, memory)


def play(policy: ActorCritic, observation: Tensor, memory: Tensor | None = None) -> Any:
    """The action, or action and memory after it, of a policy of one member; shapes as in the module's table."""
    x = observation.unsqueeze(0)
    if memory is None:
        return policy.mode(x)[0]
    action, memory = policy.play(x, memory.unsqueeze(0))
    return action[0], memory[0]


def export(path: str | Path, policy: ActorCritic, format: str) -> Path:
    """Write a policy of one member; the suffix is added where the path has none. Returns the file.

    Raises:
        InputError: an unknown format, a missing package (says which), or a model that does not compute what the policy
            does, in which case nothing is left behind.
    """
    if format not in SUFFIXES:
        raise InputError(f"format {format!r}: accepted are {', '.join(SUFFIXES)}")
    path = Path(path) if Path(path).suffix else Path(path).with_suffix(SUFFIXES[format])
    policy = copy.deepcopy(policy).cpu().eval()
    inputs = example(policy)
    with torch.no_grad():
        expected = _tuple(play(policy, *inputs))
    if format == "onnx":
        from drl_agents.compat.onnx import onnx_model, onnx_runner

        content = onnx_model(Exported(policy), inputs)
        found = onnx_runner(content)(*inputs)
    elif format == "safetensors":
        tensors = {name: value.contiguous().cpu() for name, value in policy.state_dict().items()}
        content = save_tensors(tensors, {"policy": json.dumps(policy.spec.to_dict())})
        with torch.no_grad():
            found = _tuple(play(_rebuilt(content), *inputs))
    else:
        content = _torchscript(Exported(policy), inputs)
        found = _tuple(torch.jit.load(io.BytesIO(content))(*inputs))
    _compare(path, expected, found)
    write_atomic(path, content)
    return path


def example(policy: ActorCritic, rows: int = ROWS, member: int = 0, unknown: float = 0.05) -> tuple[Tensor, ...]:
    """Observations (rows, D) like those the member's normaliser was fitted to, a share of the market's numbers
    `unknown` (NaN), and memories (rows, M) where there are any."""
    random = torch.Generator().manual_seed(0)
    spec = policy.spec
    x = torch.randn(rows, spec.size, generator=random)
    width = spec.row_size * spec.lookback
    normalizer = policy.row_normalizer or policy.state_normalizer
    if hasattr(normalizer, "mean"):
        own = slice(0, width) if width else slice(None)
        # A row of statistics serves every bar of the lookback, and every asset where assets share it.
        times = width // normalizer.mean.shape[1] if width else 1
        x[:, own] = x[:, own] * normalizer.std[member].repeat(times) + normalizer.mean[member].repeat(times)
    if width:
        x[:, :width][torch.rand(rows, width, generator=random) < unknown] = torch.nan
    if not policy.memory_size:
        return (x,)
    return x, 0.5 * torch.randn(rows, policy.memory_size, generator=random)


def _rebuilt(content: bytes) -> ActorCritic:
    """The policy of a safetensors file's bytes: eight that say how long the JSON is, the JSON, the numbers."""
    size = int.from_bytes(content[:8], "little")
    spec = json.loads(content[8 : 8 + size])["__metadata__"]["policy"]
    policy = build_policy(PolicySpec(**json.loads(spec)), (0,))
    policy.load_state_dict(load_tensors(content))
    return policy.eval()


def _torchscript(model: Exported, inputs: tuple[Tensor, ...]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # torch says that TorchScript will not be developed further; there are runtimes that read nothing else.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.trace(model.eval(), inputs, check_trace=False)), file)
    return file.getvalue()


def _compare(path: Path, expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> None:
    for name, ours, theirs in zip(("action", "memory"), expected, found, strict=False):
        difference = float((ours.double() - theirs.double()).abs().max())
        if not difference <= TOLERANCE:
            raise InputError(
                f"{path}: the exported {name} differs by {difference:.2g}, at most {TOLERANCE} is accepted"
            )


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
