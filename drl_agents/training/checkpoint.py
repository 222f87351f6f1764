"""Checkpoints: all that the next iteration depends on, written atomically.

A checkpoint holds tensors, numbers, strings, and dictionaries and lists of them, nothing else: it is read with
`torch.load(weights_only=True)`, which runs no code from the file. The first line is the SHA-256 of the rest:
torch does not notice a changed bit.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.agents.base import AgentBase
from environments.errors import InputError
from environments.files import sync_folder, write_atomic
from environments.vec_env import VecEnv

logger = logging.getLogger(__name__)

FORMAT = 1
CHECKPOINT = "checkpoint.pt"
INTERRUPTED = "model_interrupted_"


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


def interrupted_path(folder: str | Path, iteration: int) -> Path:
    """Where a run stopped after `iteration` iterations is saved: model_interrupted_<UTC time>_<iteration>.pt."""
    return Path(folder) / f"{INTERRUPTED}{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{iteration}.pt"


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a run's folder, sound or not; those set aside left out."""
    folder = Path(folder)
    return sorted([*folder.glob(CHECKPOINT), *folder.glob(f"{INTERRUPTED}*.pt")])


def newest_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of the most iterations, the latest of several, with its content; None where there are none.

    Damaged ones are told in the log and passed over.

    Raises:
        InputError: there are some, and all are damaged.
    """
    best: tuple[tuple[int, int], Path, dict[str, Any]] | None = None
    damaged: list[InputError] = []
    for path in checkpoints_in(folder):
        try:
            state = load_checkpoint(path)
        except InputError as error:
            damaged.append(error)
            continue
        age = (int(state["iteration"]), path.stat().st_mtime_ns)
        if best is None or age > best[0]:
            best = (age, path, state)
    if best is None:
        if damaged:
            raise damaged[0]
        return None
    for error in damaged:
        logger.warning("%s; going on from %s", error, best[1])
    return best[1:]


def set_aside(path: str | Path) -> Path:
    """Rename a file to <name>.old, or <name>.2.old and so on where that is taken; returns the new path."""
    path = Path(path)
    number, aside = 1, path.with_name(f"{path.name}.old")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{number}.old")
    os.rename(path, aside)
    sync_folder(path.parent)
    return aside


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
