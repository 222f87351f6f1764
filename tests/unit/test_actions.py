"""Direction and size by hand; schemes an installed package adds; options that travel with a scheme."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import gymnasium
import numpy as np
import pytest
import torch

from environments import actions
from environments.actions import ENTRY_POINTS, SCHEMES, ActionScheme, SignalSize, build_scheme, to_orders
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.checker import check_env
from environments.errors import InputError
from environments.market_env import MarketVecEnv
from environments.plugin import build_env
from environments.portfolio import Account, equity
from environments.rules import RuleTensors


def f64(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def orders_of(action, cash=900.0, shares=10.0, mark=20.0, judged=True, threshold=0.1, increment=1e-9):
    account = Account(f64(cash), f64([shares]), f64([1.0]), f64([0.0]))
    rules = RuleTensors(f64(increment), f64(increment), f64(1.0))
    marks, able = f64([mark]), torch.tensor([[judged]])
    scheme = SignalSize(threshold)
    return scheme.orders(torch.tensor([action]), account, equity(account, marks), marks, able, rules).item()


@pytest.mark.parametrize(
    ("action", "units"),
    [
        ((1.0, 1.0), 45.0),  # all of 900 at 20
        ((0.2, 0.0), 22.5),  # half of it
        ((0.2, -0.5), 11.25),  # a quarter
        ((0.2, -1.0), 0.0),
        ((9.0, 9.0), 45.0),  # beyond the space is its edge
        ((0.1, 1.0), 0.0),  # not above the threshold
        ((0.0, 1.0), 0.0),
        ((-0.1, 1.0), 0.0),
        ((-0.11, 1.0), -10.0),
        ((-1.0, -0.2), -4.0),
        ((-1.0, -1.0), 0.0),
    ],
)
def test_direction_and_size_by_hand(action, units):
    # The threshold as the action: float32 on its way from the policy.
    assert orders_of(action, threshold=float(np.float32(0.1))) == pytest.approx(units, rel=1e-6)


def test_what_a_signal_meets():
    assert orders_of((1.0, 1.0), judged=False) == 0.0 == orders_of((-1.0, 1.0), judged=False)
    assert orders_of((-1.0, 1.0), shares=0.0) == 0.0 and orders_of((1.0, 1.0), cash=0.0) == 0.0
    assert orders_of((0.001, 1.0), threshold=0.0) == pytest.approx(45.0)
    assert orders_of((1.0, 0.0), increment=1.0) == 22.0 and orders_of((-1.0, 0.1), increment=1.0) == -5.0
    assert orders_of((1.0, -0.999)) == 0.0  # 0.45 is below the minimum of 1


def test_gradients_reach_the_size():
    action = torch.tensor([[0.5, 0.2], [-0.5, 0.2], [0.0, 0.2]], dtype=torch.float64, requires_grad=True)
    account = Account(f64(900.0, 900.0, 900.0), f64([10.0], [10.0], [10.0]), f64([1.0]), f64([0.0]))
    rules, mark = RuleTensors(f64(1.0), f64(1.0), f64(0.0)), f64([20.0])
    SignalSize().orders(action, account, f64(1_100.0), mark, torch.tensor([[True]]), rules).sum().backward()
    # d(f * 900 / 20) / da = 22.5, d(-f * 10) / da = -5; a choice has no slope.
    assert action.grad.tolist() == [[0.0, 22.5], [0.0, -5.0], [0.0, 0.0]]


def test_one_symbol_only(make_market, random_bars):
    market = make_market({s: random_bars(i, 80) for i, s in enumerate(("A/USD", "B/USD"))})
    with pytest.raises(InputError, match="'signal_size' trades a market of one symbol, this one has 2"):
        MarketVecEnv(market, 1, action="signal_size")
    with pytest.raises(InputError, match="threshold=1.0: accepted are 0 <= threshold < 1"):
        build_scheme("signal_size", threshold=1.0)


@pytest.mark.parametrize(
    ("action", "own"), [("signal_size", {"threshold": 0.4}), ("regimes", {}), ("weights", {"sharpness": 2.0})]
)
@pytest.mark.parametrize("name", ["VectorizedCryptoEnvAlpaca", "CryptoEnvAlpaca"])
def test_environments_keep_the_contract(make_market, random_bars, action, own, name):
    symbols = ("A/USD",) if action == "signal_size" else ("A/USD", "B/USD", "C/USD")
    market = make_market({s: random_bars(i, 140, missing=0.05 * i) for i, s in enumerate(symbols)})
    reward = "excess:1,drawdown:0.5,differential_sharpe:0.1,cvar:0.2"
    env = build_env(name, market, 3, action=action, **own, reward=reward, episode_length=23)
    check_env(env, steps=90)


def test_options_by_name_or_together(make_market, random_bars):
    market = make_market({"A/USD": random_bars(1, 80)})
    named = VectorizedCryptoEnvAlpaca(market, 1, action="signal_size", threshold=0.3)
    together = VectorizedCryptoEnvAlpaca(market, 1, action="signal_size", action_options={"threshold": 0.3})
    assert named.scheme == together.scheme == SignalSize(0.3) == build_scheme("signal_size", **named.scheme.options)
    with pytest.raises(InputError, match="'trades' has no option threshold: accepted are max_trade"):
        VectorizedCryptoEnvAlpaca(market, 1, threshold=0.3)


# ---------------------------------------------------------------------------------------------- plug-ins


@dataclass(frozen=True)
class Trend(ActionScheme):
    """Discrete(2): nothing, or all of the cash into the assets that rose over `span` bars; reads the market itself."""

    span: int = 3
    name = "trend"
    n_factors = 1

    def space(self, n_assets):
        return gymnasium.spaces.Discrete(2)

    def factors(self, bars, extra):
        rise = np.full((bars.close.size, 1), math.nan)
        rise[self.span :, 0] = bars.close[self.span :] - bars.close[: -self.span]
        return rise

    def rows(self, factors, judged):
        return (factors[..., 0] > 0) & judged

    def orders(self, action, account, equity, mark, judged, rules, row=None):
        value = row * (action * account.cash).unsqueeze(-1) / row.sum(-1, keepdim=True).clamp(min=1)
        return to_orders(value / mark.masked_fill(~judged, 1.0), account, mark, judged, rules)


@pytest.fixture
def installed(monkeypatch):
    here = __name__
    points = [
        EntryPoint(name, f"{here}:{attribute}", ENTRY_POINTS)
        for name, attribute in (("trend", "Trend"), ("other", "Trend"), ("thing", "gymnasium"))
    ]
    found = {"trend": Trend, "other": Trend, "thing": gymnasium}
    monkeypatch.setattr(EntryPoint, "load", lambda point: found[point.name])
    monkeypatch.setattr(actions, "entry_points", lambda group: points if group == ENTRY_POINTS else [])


def test_an_installed_scheme_is_one_as_any_other(installed, make_market, random_bars):
    market = make_market({s: random_bars(i, 90, missing=0.1) for i, s in enumerate(("A/USD", "B/USD"))})
    env = VectorizedCryptoEnvAlpaca(market, 2, action="trend", action_options={"span": 5}, features=("return_1",))
    assert env.scheme == Trend(5) and env.scheme.options == {"span": 5}
    check_env(env, steps=60)
    judged = env.features.ready & market.close.isfinite()
    for asset in range(2):
        own = market.close[:, asset].isfinite()
        close = market.close[own, asset]
        rose = torch.zeros_like(close)
        rose[5:] = (close[5:] > close[:-5]).to(close.dtype)
        assert torch.equal(env._action_table[own, asset], rose * judged[own, asset])
        assert not env._action_table[~own, asset].any()


def test_what_is_no_scheme_is_refused(installed):
    with pytest.raises(InputError, match="'bets': accepted are trades, weights, signal_size, regimes, trend, other, t"):
        build_scheme("bets")
    for name in ("other", "thing"):
        with pytest.raises(InputError, match=f"frozen dataclass derived from ActionScheme with the name '{name}'"):
            build_scheme(name)


def test_the_built_in_names_are_their_own():
    assert {name: kind.name for name, kind in SCHEMES.items()} == {name: name for name in SCHEMES}
