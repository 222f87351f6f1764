"""Checkpoints: all that the next iteration depends on, written atomically.

A checkpoint holds tensors, numbers, strings, and dictionaries and lists of them, nothing else: it is read with
`torch.load(weights_only=True)`, which runs no code from the file. The first line is the SHA-256 of the rest:
torch does not notice a changed bit.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.agents.base import AgentBase
from environments.errors import InputError
from environments.files import write_atomic
from environments.vec_env import VecEnv

FORMAT = 1


def save_checkpoint(path: str | Path, agent: AgentBase, env: VecEnv, iteration: int, record: dict[str, Any]) -> None:
    """Write agent, environment and random state after `iteration` iterations. `record`: JSON-able facts of the run."""
    state = {
        "format": FORMAT,
        "iteration": iteration,
        "record": record,
        "agent": agent.state_dict(),
        "env": env.state_dict(),
        "observation": agent.observation_state(),
        "torch_rng": torch.get_rng_state(),
        "python_rng": _plain(random.getstate()),
        "numpy_rng": _numpy_state(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, _digest(payload) + payload)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        InputError: no such file, cut short, damaged, or not a checkpoint of this format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file")
    content = path.read_bytes()
    size = len(_digest(b""))
    if content[:size] != _digest(content[size:]):
        raise InputError(f"checkpoint {path}: cut short, damaged, or no checkpoint; take another")
    try:
        state = torch.load(io.BytesIO(content[size:]), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"checkpoint {path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"checkpoint {path}: not a checkpoint of format {FORMAT}")
    return state


def restore(state: dict[str, Any], agent: AgentBase, env: VecEnv) -> int:
    """Put a loaded checkpoint back; returns the iterations done.

    Where the environment cannot be restored (its state is None), its episodes start anew.

    Raises:
        InputError: the agent has another architecture or the environment other sizes; the message names the
            first field that differs. Neither has been touched then.
    """
    _same_shapes("agent", state["agent"], agent.state_dict())
    _same_shapes("environment", state["env"], env.state_dict())
    agent.load_state_dict(state["agent"])
    if state["env"] is not None:
        env.load_state_dict(state["env"])
        # None: the run was stopped before its first rollout.
        if state["observation"] is not None:
            agent.restore_observation({k: v.to(env.device) for k, v in state["observation"].items()}, env)
    torch.set_rng_state(state["torch_rng"])
    version, internal, gauss = state["python_rng"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy_rng"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    return int(state["iteration"])


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _same_shapes(whose: str, saved: dict[str, Any] | None, own: dict[str, Any] | None) -> None:
    # Compared here, since copying would silently repeat the state of one environment over many.
    there, here = _shapes(saved), _shapes(own)
    for name in [*here, *(name for name in there if name not in here)]:
        if there.get(name) != here.get(name):
            a, b = (shapes.get(name, "missing") for shapes in (there, here))
            raise InputError(f"checkpoint does not fit: {name} is {a} in the checkpoint, {b} in the {whose}")


def _shapes(state: dict[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in nested dictionaries, by its dotted name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in (state or {}).items():
        if isinstance(value, dict):
            shapes |= {f"{name}.{inner}": shape for inner, shape in _shapes(value).items()}
        elif isinstance(value, torch.Tensor):
            shapes[name] = tuple(value.shape)
    return shapes


def _plain(state: tuple[Any, ...]) -> list[Any]:
    return [state[0], list(state[1]), state[2]]


def _numpy_state() -> list[Any]:
    # numpy's old global generator is saved for plug-ins that draw from it; ours never do.
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached]
