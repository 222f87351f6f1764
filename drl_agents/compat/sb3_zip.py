"""stable-baselines3's model files: written so that its own `PPO.load` opens them, read without unpickling anything.

Format, of stable-baselines3 2.x (https://stable-baselines3.readthedocs.io/en/master/guide/save_format.html): a zip of

    data                  JSON; what JSON cannot hold is a pickle in base64 beside a readable summary
    policy.pth            the policy's state_dict
    policy.optimizer.pth  the optimiser's

Its policies do not normalise observations and act in the environment's own units; ours do the first and act in [-1, 1].
Both differences are affine and folded into the first and the last layer:

    W1' = W1 / std,  b1' = b1 - mean W1'        W3' = W3 h,  b3' = b3 h + c,  log_std' = log_std + ln h

with h = (high - low) / 2 and c = (high + low) / 2 of the action space. What is written is read back and compared with
the policy, on observations within its limit. What is not affine is lost: the limit of +-10 standard deviations on
observations, which is told in the log, and a mean in place of what is unknown (NaN). A policy that comes in is left
without a normaliser (`PolicySpec.normalizer` "none"): its weights are of observations as they are.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import math
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from drl_agents.compat.export import TOLERANCE, example
from drl_agents.networks.normalizer import FixedNormalizer
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.errors import InputError
from environments.files import write_atomic

logger = logging.getLogger(__name__)

VERSION = "2.7.0"  # the oldest whose reader was tried
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
# Its policy class by name, as a pickle of protocol 0: written without the package.
_POLICY_CLASS = b"cstable_baselines3.common.policies\nActorCriticPolicy\n."
_HEADS = (("actor", "policy_net", "action_net"), ("critic", "value_net", "value_net"))


def export_sb3(
    path: str | Path,
    policy: ActorCritic,
    *,
    member: int = 0,
    action_space: gymnasium.Space | None = None,
    observation_space: gymnasium.spaces.Box | None = None,
    **hyper: Any,
) -> Path:
    """Write a policy as a model of stable-baselines3's PPO.

    Args:
        member: of the population. action_space: the environment's own; default: [-1, 1] or Discrete.
        observation_space: default: unbounded. hyper: of its PPO, such as gamma or n_steps, for training to go on with.

    Returns:
        the file, `.zip` added where the path has no suffix.

    Raises:
        InputError: the policy is not a tanh or ReLU MLP with affine normalisation, or not one of actor and critic; or
            what was written does not compute what the policy does, in which case nothing is left behind.
    """
    spec = policy.spec
    if spec.distribution != "normal" or not spec.value:
        raise InputError(
            f"a policy of distribution {spec.distribution!r}, with {'a' if spec.value else 'no'} critic of states: "
            "stable-baselines3's PPO has 'normal' and a critic; accepted are models of ppo, a2c, shac and dqn"
        )
    if spec.per_asset:
        raise InputError("a policy whose assets share weights (per_asset): only a plain mlp goes to stable-baselines3")
    if getattr(spec, "network", "mlp") != "mlp" or getattr(spec, "layer_norm", False):
        raise InputError(f"network {spec.network!r}: only a plain mlp is a policy of stable-baselines3")
    policy = copy.deepcopy(policy).cpu().eval()
    space = spec.action_space if action_space is None else action_space
    if observation_space is None:
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.size,), np.float32)
    mean, std = _statistics(policy, member)
    half, middle = _half_and_middle(space) if policy.log_std is not None else (torch.ones(1), torch.zeros(1))
    state: dict[str, Tensor] = {}
    if policy.log_std is not None:
        state["log_std"] = policy.log_std.detach()[member, 0].double() + half.log()
    for net, extractor, last in _HEADS:
        layers = [(layer.weight.detach()[member].double(), layer.bias.detach()[member, 0].double())
                  for layer in getattr(policy, net).layers]  # fmt: skip
        weight, bias = layers[0]
        weight = weight / std.unsqueeze(1)
        layers[0] = weight, bias - mean @ weight
        if net == "actor" and policy.log_std is not None:
            weight, bias = layers[-1]
            layers[-1] = weight * half, bias * half + middle
        names = [f"mlp_extractor.{extractor}.{2 * i}" for i in range(len(layers) - 1)] + [last]
        for name, (weight, bias) in zip(names, layers, strict=True):
            state[f"{name}.weight"], state[f"{name}.bias"] = weight.T, bias
    state = {name: value.float().contiguous() for name, value in state.items()}
    layers = list(spec.hidden)
    data = {
        "policy_class": _pickled(_POLICY_CLASS, "ActorCriticPolicy"),
        "observation_space": _space(observation_space),
        "action_space": _space(space),
        "policy_kwargs": _pickled(
            pickle.dumps({"net_arch": layers, "activation_fn": _ACTIVATIONS[spec.activation]}),
            "dict",
            net_arch=layers,
            activation_fn=str(_ACTIVATIONS[spec.activation]),
        ),
        "verbose": 0,
        "n_envs": 1,
        "num_timesteps": 0,
        **hyper,
    }
    optimizer = torch.optim.Adam(
        [nn.Parameter(value) for value in state.values()], data.get("learning_rate", 3e-4), eps=1e-5
    )
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".zip")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps(data, indent=4))
        archive.writestr("policy.pth", _saved(state))
        archive.writestr("policy.optimizer.pth", _saved(optimizer.state_dict()))
        archive.writestr("pytorch_variables.pth", _saved({}))
        archive.writestr("_stable_baselines3_version", VERSION)
    _compare(path, file, policy, member, half, middle)
    limits = [n.limit for n in (policy.row_normalizer, policy.state_normalizer) if hasattr(n, "limit")]
    if (limit := min(limits, default=math.inf)) < math.inf:
        logger.warning("%s: observations are limited to %g standard deviations from their mean here, and not in "
                       "stable-baselines3: beyond, actions differ", path, limit)  # fmt: skip
    write_atomic(path, file.getvalue())
    return path


@torch.no_grad()
def _compare(path: Path, file: io.BytesIO, policy: ActorCritic, member: int, half: Tensor, middle: Tensor) -> None:
    """Read the weights back, run them as stable-baselines3's MlpPolicy does, and compare both heads with the policy's.

    Differences are relative to the largest number of a head, or 1: a mean of many deviations costs float32's digits.
    """
    with zipfile.ZipFile(file) as archive:
        state = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    activate = _ACTIVATIONS[policy.spec.activation]()
    (rows,) = example(policy, member=member, unknown=0.0)
    seen = rows.expand(policy.n_members, -1, -1)
    for net, extractor, last in _HEADS:
        x, i = rows, 0
        while (name := f"mlp_extractor.{extractor}.{2 * i}") + ".weight" in state:
            x, i = activate(linear(x, state[f"{name}.weight"], state[f"{name}.bias"])), i + 1
        found = linear(x, state[f"{last}.weight"], state[f"{last}.bias"]).double()
        own = policy.dense(seen, getattr(policy, net))[0][member].double()
        expected = own * half + middle if net == "actor" else own
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        if not difference <= TOLERANCE:
            raise InputError(f"{path}: the exported {net} differs by {difference:.2g}, at most {TOLERANCE} is accepted")


def import_sb3(path: str | Path, action_space: gymnasium.Space | None = None) -> tuple[ActorCritic, gymnasium.Space]:
    """The policy of a model that stable-baselines3's PPO or A2C saved. Nothing is unpickled from the file: the weights
    are loaded as weights only, the rest is read from the JSON's readable parts.

    Args:
        action_space: of the environment it acts in; default: what the file says in digits (8 of them).

    Returns:
        a policy of one member over whole observations, with actions in [-1, 1] where they are a Box; and the action
        space that it stretches them to.

    Raises:
        InputError: no such file, not such a file, or a policy other than an MLP of tanh or ReLU with equal layers for
            actor and critic.
    """
    path, data, state = _content(path)
    own = data.get("policy_kwargs", {})
    activation = _activation(path, str(own.get("activation_fn", "Tanh")))
    nets = {}
    for net, extractor, last in _HEADS:
        found = [name for name in state if name.startswith(f"mlp_extractor.{extractor}.") and name.endswith(".weight")]
        names = [name.removesuffix(".weight") for name in sorted(found, key=lambda name: int(name.split(".")[2]))] + [
            last
        ]
        if any(f"{name}.weight" not in state for name in names):
            raise InputError(f"{path}: has no {last}: accepted are models of PPO and A2C with MlpPolicy")
        nets[net] = [(state.pop(f"{name}.weight").double().T, state.pop(f"{name}.bias").double()) for name in names]
    log_std = state.pop("log_std", None)
    hidden = {net: tuple(weight.shape[1] for weight, _ in layers[:-1]) for net, layers in nets.items()}
    if state or hidden["actor"] != hidden["critic"] or not hidden["actor"] or data.get("use_sde"):
        what = f"parameters {', '.join(state)}" if state else "state-dependent noise" if data.get("use_sde") else hidden
        raise InputError(f"{path}: {what}: accepted is MlpPolicy, the same layers for actor and critic, one at least")
    size, n_actions = nets["actor"][0][0].shape[0], nets["actor"][-1][0].shape[1]
    space = action_space or gymnasium.spaces.Discrete(n_actions)
    if log_std is not None:
        space = action_space or _box_of(path, data.get("action_space", {}))
        half, middle = _half_and_middle(space)
        weight, bias = nets["actor"][-1]
        nets["actor"][-1] = weight / half, (bias - middle) / half
    action = "discrete" if log_std is None else "box"
    spec = PolicySpec(0, 1, size, action, n_actions, hidden["actor"], activation, normalizer="none")
    policy = ActorCritic(spec, seeds=(0,))
    with torch.no_grad():
        for net, layers in nets.items():
            for layer, (weight, bias) in zip(getattr(policy, net).layers, layers, strict=True):
                layer.weight[0], layer.bias[0, 0] = weight, bias
        if log_std is not None:
            policy.log_std[0, 0] = log_std.double() - half.log()
    return policy, space


def sb3_options(path: str | Path, given: Collection[str] = ()) -> dict[str, Any]:
    """What the model was trained with, by the names of PPO's constructor, as far as it can be read without unpickling:
    a schedule of the user's own cannot, and is told in the log unless it is `given`. Of A2C what the two share.

    Raises:
        InputError: see `import_sb3`.
    """
    path, data, _ = _content(path)
    names = ["gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm"]
    if "batch_size" in data:
        names += ["n_steps", "batch_size", "n_epochs", "target_kl", "normalize_advantage", "seed"]
    options = {name: data[name] for name in names if name in data and not isinstance(data[name], dict)}
    for name in ("learning_rate", "clip_range") if "batch_size" in data else ("learning_rate",):
        value = data.get(name)
        if isinstance(value, dict):
            constant = re.search(r"ConstantSchedule\(val=([-+.\de]+)\)", str(value.get("value_schedule")))
            value = None if constant is None else float(constant[1])
        if value is not None:
            options[name] = value
        elif name not in given:
            logger.warning("%s: its %s is a schedule, which cannot be read: give it to load", path, name)
    return options


def _content(path: str | Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """(the file, its JSON, the policy's weights)."""
    path = Path(path) if Path(path).exists() else Path(path).with_suffix(".zip")
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
            state = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not a model of stable-baselines3 ({str(error).splitlines()[0]})") from error
    return path, data, state


def _statistics(policy: ActorCritic, member: int) -> tuple[Tensor, Tensor]:
    """(mean, std) (D,) float64 of a dense observation as the policy normalises it."""
    spec = policy.spec
    mean, std = torch.zeros(spec.size, dtype=torch.float64), torch.ones(spec.size, dtype=torch.float64)
    for normalizer, place, times in (
        (policy.row_normalizer, slice(0, spec.row_size * spec.lookback), spec.lookback),
        (policy.state_normalizer, slice(spec.row_size * spec.lookback, None), 1),
    ):
        if normalizer is None:
            continue
        if not isinstance(normalizer, FixedNormalizer):
            raise InputError(f"normalizer {spec.normalizer!r} is not affine: stable-baselines3 has no place for it")
        mean[place] = normalizer.mean[member].double().cpu().repeat(times)
        std[place] = normalizer.std[member].double().cpu().repeat(times)
    return mean, std


def _half_and_middle(space: gymnasium.Space) -> tuple[Tensor, Tensor]:
    if not isinstance(space, gymnasium.spaces.Box) or not np.isfinite([space.low, space.high]).all():
        raise InputError(f"action space {space}: a Box with finite bounds is needed")
    low, high = (torch.as_tensor(bound, dtype=torch.float64).flatten() for bound in (space.low, space.high))
    return (high - low) / 2, (high + low) / 2


def _activation(path: Path, text: str) -> str:
    for name, cls in _ACTIVATIONS.items():
        if cls.__name__ in text:
            return name
    raise InputError(
        f"{path}: activation {text}: accepted are {', '.join(cls.__name__ for cls in _ACTIVATIONS.values())}"
    )


def _box_of(path: Path, said: dict[str, Any]) -> gymnasium.spaces.Box:
    """A Box from its readable summary; refused where that is not whole."""
    try:
        low, high = (np.array(said[name].strip("[]").split(), dtype=np.float32) for name in ("low", "high"))
        return gymnasium.spaces.Box(low, high, dtype=np.float32)
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its action space cannot be read without unpickling: give action_space") from error


def _space(space: gymnasium.Space) -> dict[str, Any]:
    names = ("dtype", "_shape", "low", "high", "n", "start")
    said = {name: str(getattr(space, name)) for name in names if getattr(space, name, None) is not None}
    return _pickled(pickle.dumps(space), type(space).__name__, **said)


def _pickled(payload: bytes, of: str, **said: Any) -> dict[str, Any]:
    return {":type:": of, ":serialized:": base64.b64encode(payload).decode(), **said}


def _saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()
