"""PolicySpec: what a policy is built from, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import gymnasium
import numpy as np

from drl_agents.networks.distributions import distribution_for
from environments.errors import InputError
from environments.observation import account_size
from environments.vec_env import VecEnv


@dataclass(frozen=True)
class MLPOptions:
    """An MLP has none beside `PolicySpec.hidden`, `activation` and `layer_norm`."""


@dataclass(frozen=True)
class GRUOptions:
    """hidden_dim: units of the encoder and of each layer. n_gru_layers: layers. dropout: share of the encoder's units
    that are silent in training; the same ones for a whole rollout of an environment."""

    hidden_dim: int = 256
    n_gru_layers: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _at_least_one(self, "hidden_dim", "n_gru_layers")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout}: accepted are 0 up to but not 1")


@dataclass(frozen=True)
class TransformerOptions:
    """d_model: width. num_layers: layers. n_heads: heads of attention, a divisor of d_model. positions: "learned" or
    "sinusoidal"."""

    d_model: int = 256
    num_layers: int = 4
    n_heads: int = 8
    positions: str = "learned"

    def __post_init__(self) -> None:
        _at_least_one(self, "d_model", "num_layers", "n_heads")
        if self.d_model % self.n_heads:
            raise InputError(f"n_heads={self.n_heads}: a divisor of d_model={self.d_model} is accepted")
        if self.positions not in ("learned", "sinusoidal"):
            raise InputError(f"positions={self.positions!r}: accepted are learned, sinusoidal")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise InputError(f"d_model={self.d_model}: sinusoidal positions need an even one")


@dataclass(frozen=True)
class LightweightOptions(TransformerOptions):
    """A smaller transformer."""

    d_model: int = 64
    num_layers: int = 2
    n_heads: int = 4


OPTIONS = {"mlp": MLPOptions, "gru": GRUOptions, "transformer": TransformerOptions, "lightweight": LightweightOptions}


@dataclass(frozen=True)
class PolicySpec:
    """What a policy is built from; JSON-able, so that a bundle can rebuild it.

    row_size: R, market features per bar (0 outside a market). lookback: L. state_size: K.
    action: "box" or "discrete". action_size: components of a Box, choices of a Discrete.
    hidden, activation: of the MLP, or of the heads that actor and critic have behind another network.
    normalizer: of the market's features, "standard" (mean and deviation) or "quantile" (normal scores). Outside a
    market observations have their running mean and deviation, or with "none" are left as they are.
    layer_norm: the hidden layers' sums are normalised (Ba et al., 2016).
    network: "mlp", "gru", "transformer", "lightweight", or "package.module:Class", a module of the user's own.
    options: the network's own, see `GRUOptions` and `TransformerOptions`; of a user's module: what its constructor is
    given.
    per_asset: weights are shared by the assets, so that the policy runs on any number of them; n_assets: A then, or 0.
    distribution: of Box actions, "normal" (a free deviation for each component), "squashed" (tanh of a normal whose
    deviation the network gives) or "tanh" (no spread). value: with a critic of states. Off-policy agents set both.
    """

    row_size: int
    lookback: int
    state_size: int
    action: str
    action_size: int
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "tanh"
    log_std: float = -0.5
    normalizer: str = "standard"
    layer_norm: bool = False
    network: str = "mlp"
    options: Mapping[str, Any] = field(default_factory=dict)
    per_asset: bool = False
    n_assets: int = 0
    distribution: str = "normal"
    value: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"hidden={self.hidden}: at least one layer of at least one unit")
        if not -20 <= self.log_std <= 2:  # from 2e-9 to 7 times half the range of an action
            raise InputError(f"log_std={self.log_std}: accepted are -20 to 2")
        kinds = ("standard", "quantile", *(() if self.row_size else ("none",)))
        if self.normalizer not in kinds:
            raise InputError(f"normalizer={self.normalizer!r}: accepted are {', '.join(kinds)}")
        if self.activation not in ("tanh", "relu"):
            raise InputError(f"activation={self.activation!r}: accepted are tanh, relu")
        if self.network not in OPTIONS and ":" not in self.network:
            raise InputError(f"network={self.network!r}: accepted are {', '.join(OPTIONS)}, package.module:Class")
        object.__setattr__(self, "options", self._resolved())
        if self.network in ("transformer", "lightweight") and not self.row_size:
            raise InputError(
                f"network={self.network!r} reads the bars of a market, and there is none; accepted: mlp, gru"
            )
        if self.per_asset:
            self._check_per_asset()

    def _resolved(self) -> dict[str, Any]:
        """The options with the network's defaults in place, so that a saved policy does not change with them."""
        if self.network not in OPTIONS:
            return dict(self.options)
        kind = OPTIONS[self.network]
        accepted = [item.name for item in fields(kind)]
        if unknown := sorted(set(self.options) - set(accepted)):
            raise InputError(
                f"network {self.network!r} has no option {', '.join(unknown)}: accepted are "
                f"{', '.join((*accepted, *SHARED))}"
            )
        return asdict(kind(**self.options))

    def _check_per_asset(self) -> None:
        if self.network != "mlp":
            raise InputError(f"per_asset: accepted with network='mlp', not with {self.network!r}")
        if not self.value or self.distribution != "normal":
            raise InputError("per_asset: accepted with agents such as ppo and a2c, not with sac, td3 or ddpg")
        if self.n_assets < 1 or self.row_size % self.n_assets or self.state_size != account_size(self.n_assets):
            raise InputError("per_asset: only the assets of a market can share weights, and there is no market")
        if self.action == "box" and self.action_size not in (self.n_assets, self.n_assets + 1):
            raise InputError(
                f"per_asset: {self.action_size} numbers of an action are not one for each of {self.n_assets} assets, "
                "with one more for cash or without"
            )

    @classmethod
    def of(cls, env: VecEnv, **network: Any) -> PolicySpec:
        """The spec that fits an environment.

        Args:
            network: `SHARED` fields of the spec, and the network's own options by their names or as `options`.

        Raises:
            InputError: an action space no policy can play, an option the network does not have or out of its range.
        """
        space = env.single_action_space
        distribution_for(space)  # refuses what no policy can play
        discrete = isinstance(space, gymnasium.spaces.Discrete)
        own = {name: value for name, value in network.items() if name in (*SHARED, "options")}
        rest = {name: value for name, value in network.items() if name not in own}
        return cls(
            row_size=0 if env.rows is None else env.rows.shape[1],
            lookback=env.lookback,
            state_size=env.state_size,
            action="discrete" if discrete else "box",
            action_size=int(space.n) if discrete else int(np.prod(space.shape)),
            n_assets=env.market.n_assets if network.get("per_asset") and env.rows is not None else 0,
            **{**own, "options": {**own.get("options", {}), **rest}},
        )

    @property
    def size(self) -> int:
        """Length of a dense observation."""
        return self.row_size * self.lookback + self.state_size

    @property
    def action_space(self) -> gymnasium.Space:
        if self.action == "discrete":
            return gymnasium.spaces.Discrete(self.action_size)
        return gymnasium.spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# What every network has, to be given by name.
SHARED = ("hidden", "activation", "log_std", "normalizer", "layer_norm", "network", "per_asset")


def _at_least_one(options: object, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise InputError(f"{name}={getattr(options, name)}: at least 1 is needed")
