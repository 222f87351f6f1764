"""Which network, as flags: what is left out has the network's own default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from environments.errors import InputError

_DEPTH = 2  # layers of the MLP that --hidden-dim alone describes


@dataclass(frozen=True)
class NetworkOptions:
    """The network that learns."""

    network: str = "mlp"
    """mlp, gru, transformer, lightweight, or package.module:Class"""
    hidden: tuple[int, ...] | None = None
    """units of the hidden layers: of the MLP, or of the heads behind another network; default: 128 128"""
    hidden_dim: int | None = None
    """width: of every layer of a gru, of a transformer (d_model), of two layers of an mlp"""
    n_gru_layers: int | None = None
    """layers of a gru"""
    dropout: float | None = None
    """share of a gru's encoder that is silent in training"""
    num_layers: int | None = None
    """layers of a transformer"""
    n_heads: int | None = None
    """heads of a transformer's attention"""
    positions: str | None = None
    """positions of a transformer: learned or sinusoidal"""
    layer_norm: bool = False
    """normalise the hidden layers"""
    activation: str = "tanh"
    """tanh or relu"""
    log_std: float = -0.5
    """logarithm of the actions' standard deviation at the start"""
    per_asset: bool = False
    """share weights over the assets: the policy then runs on any number of them"""
    normalizer: str = "standard"
    """of market features: standard (mean and deviation) or quantile (normal scores); none: outside a market,
    observations as they are"""

    def spec(self) -> dict[str, Any]:
        """The options as `PolicySpec.of` takes them.

        Raises:
            InputError: --hidden and --hidden-dim for one MLP.
        """
        own = {name: value for name, value in vars(self).items() if value is not None and name != "hidden_dim"}
        if self.hidden_dim is not None:
            if self.hidden_dim < 1:
                raise InputError(f"--hidden-dim {self.hidden_dim}: at least 1 is needed")
            if self.network == "mlp" and self.hidden is not None:
                raise InputError("--hidden and --hidden-dim say the same of an mlp: give one of them")
            if self.network == "mlp":
                own["hidden"] = (self.hidden_dim,) * _DEPTH
            else:
                own["d_model" if self.network in ("transformer", "lightweight") else "hidden_dim"] = self.hidden_dim
        return own
