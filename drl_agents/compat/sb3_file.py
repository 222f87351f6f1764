"""Models of the stable-baselines3 door in our own format: a zip of model.json and model.safetensors."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from environments.errors import InputError
from environments.files import write_atomic

FORMAT = "drl_agents.compat.sb3/1"
_FACTS, _TENSORS = "model.json", "model.safetensors"


def write_model(path: str | Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write facts (JSON-able) and tensors; `.zip` is added where the path has no suffix."""
    path = Path(path) if Path(path).suffix else Path(path).with_suffix(".zip")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_FACTS, json.dumps({"format": FORMAT, **facts}, indent=2))
        archive.writestr(_TENSORS, save_tensors(dict(tensors)))
    write_atomic(path, file.getvalue())
    return path


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """(facts, tensors) of a model; None for a zip that is not of this format.

    Raises:
        InputError: there is no such file, or it is of another version.
    """
    path = Path(path) if Path(path).exists() else Path(path).with_suffix(".zip")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a model (no zip file)")
    with zipfile.ZipFile(path) as archive:
        if _FACTS not in archive.namelist():
            return None
        facts, tensors = json.loads(archive.read(_FACTS)), load_tensors(archive.read(_TENSORS))
    if facts.get("format") != FORMAT:
        raise InputError(f"{path}: format {facts.get('format')!r}, accepted is {FORMAT!r}")
    return facts, tensors


def network_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """stable-baselines3's `policy_kwargs` as ours: hidden, activation, log_std.

    Raises:
        InputError: something there that our networks do not have.
    """
    known = {"net_arch", "activation_fn", "log_std_init", "ortho_init"}
    if unknown := sorted(set(kwargs) - known):
        raise InputError(f"policy_kwargs {', '.join(unknown)}: accepted are {', '.join(sorted(known))}")
    layers: Sequence[int] | dict[str, Sequence[int]] | None = kwargs.get("net_arch")
    layers = (64, 64) if layers is None else layers
    if isinstance(layers, dict):
        if list(layers.get("pi", ())) != list(layers.get("vf", ())):
            raise InputError(f"net_arch {layers}: pi and vf must have the same layers")
        layers = layers.get("pi", ())
    if not layers or not all(isinstance(width, int) and width > 0 for width in layers):
        raise InputError(f"net_arch {kwargs['net_arch']}: at least one layer is needed, each a whole number of units")
    if kwargs.get("ortho_init", True) is not True:
        raise InputError("ortho_init=False: weights start orthogonal here")
    activation = {torch.nn.Tanh: "tanh", torch.nn.ReLU: "relu"}.get(kwargs.get("activation_fn", torch.nn.Tanh))
    if activation is None:
        raise InputError(f"activation_fn {kwargs['activation_fn'].__name__}: accepted are Tanh, ReLU")
    return {"hidden": tuple(layers), "activation": activation, "log_std": float(kwargs.get("log_std_init", 0.0))}


def space_facts(space: gymnasium.Space) -> dict[str, Any]:
    """An action space, Box or Discrete, as JSON."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return {"n": int(space.n)}
    return {"low": space.low.tolist(), "high": space.high.tolist()}


def space_of(facts: Mapping[str, Any]) -> gymnasium.Space:
    """The inverse of `space_facts`."""
    if "n" in facts:
        return gymnasium.spaces.Discrete(facts["n"])
    return gymnasium.spaces.Box(np.array(facts["low"], np.float32), np.array(facts["high"], np.float32))
