"""The twelve portfolios: weights by hand, for few symbols and many; causal; the same from the last bars alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from environments.actions import Regimes, build_scheme
from environments.errors import InputError
from environments.features import MEMORY, Bars, compute_features
from environments.market_env import MarketVecEnv
from environments.portfolio import Account, equity, open_account
from environments.regimes import REGIMES, asset_factors, target_weights
from environments.rules import AssetRule, RuleBook, RuleTensors

UNKNOWN = math.nan
FREE = {"commission_bps": 0.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}


def weights_of(factors, judged=None) -> dict[str, list[float]]:
    """Weights by name at one bar; factors: one (momentum, stability, quality, smallness) per asset."""
    known = [True] * len(factors) if judged is None else judged
    table = target_weights(torch.tensor([factors], dtype=torch.float64), torch.tensor([known]))
    assert table.shape == (1, 12, len(factors))
    return dict(zip(REGIMES, table[0].tolist(), strict=True))


def bars_of(close) -> Bars:
    close = np.asarray(close, dtype=np.float64)
    return Bars(close, close, close, close, np.ones_like(close))


def test_four_symbols_by_hand():
    """The halves: 0 and 1 by momentum, 2 and 3 by volatility, 0 and 2 by Sharpe ratio, 1 and 3 by size."""
    factors = [(0.4, -0.04, 9.0, -40.0), (0.3, -0.03, 1.0, -1.0), (0.2, -0.02, 8.0, -30.0), (0.1, -0.01, 2.0, -2.0)]
    third, sixth = 1 / 3, 1 / 6
    expected = {
        "HOLD": [0, 0, 0, 0],
        "FULL_CASH": [0, 0, 0, 0],
        "DEFENSIVE": [0.125] * 4,
        "LIGHT_CASH": [0.1875] * 4,
        "EQUAL_WEIGHT": [0.25] * 4,
        "MOMENTUM": [third, third, sixth, sixth],
        "LOW_VOL": [sixth, sixth, third, third],
        "QUALITY": [third, sixth, third, sixth],
        "SIZE_SMALL": [sixth, third, sixth, third],
        "SAFE_MOMENTUM": [0.7 * w for w in (third, third, sixth, sixth)],
        "SAFE_QUALITY": [0.7 * w for w in (third, sixth, third, sixth)],
        "RISK_ON": [0.5, 0.5, 0, 0],
    }
    got = weights_of(factors)
    assert list(got) == list(expected)
    for name, weights in expected.items():
        assert got[name] == pytest.approx(weights, rel=1e-14), name


@pytest.mark.parametrize(
    ("count", "tilt", "risk_on"),
    [
        (1, [1.0], [1.0]),
        (2, [2 / 3, 1 / 3], [1.0, 0.0]),
        (3, [0.4, 0.4, 0.2], [1.0, 0.0, 0.0]),
        (5, [2 / 8, 2 / 8, 2 / 8, 1 / 8, 1 / 8], [0.5, 0.5, 0, 0, 0]),
        (10, [2 / 15] * 5 + [1 / 15] * 5, [1 / 3] * 3 + [0] * 7),
    ],
)
def test_any_number_of_symbols(count, tilt, risk_on):
    """All factors fall with the place: the first is the best of each."""
    got = weights_of([(-float(i),) * 4 for i in range(count)])
    for name in ("MOMENTUM", "LOW_VOL", "QUALITY", "SIZE_SMALL"):
        assert got[name] == pytest.approx(tilt, rel=1e-14)
    for name in ("SAFE_MOMENTUM", "SAFE_QUALITY"):
        assert got[name] == pytest.approx([0.7 * w for w in tilt], rel=1e-14)
    assert got["RISK_ON"] == pytest.approx(risk_on, rel=1e-14)
    for name, invested in (("DEFENSIVE", 0.5), ("LIGHT_CASH", 0.75), ("EQUAL_WEIGHT", 1.0)):
        assert got[name] == pytest.approx([invested / count] * count, rel=1e-14)


def test_three_hundred_symbols():
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(2, 300, 4, generator=generator, dtype=torch.float64)
    table = target_weights(factors, torch.ones(2, 300, dtype=torch.bool))
    cash = 1 - table.sum(-1)
    assert torch.allclose(cash, torch.tensor([1, 1, 0.5, 0.25, 0, 0, 0, 0, 0, 0.3, 0.3, 0], dtype=torch.float64))
    assert ((table[:, REGIMES.index("RISK_ON")] > 0).sum(-1) == 90).all()
    momentum = table[:, REGIMES.index("MOMENTUM")]
    assert ((momentum > 1.5 / 450).sum(-1) == 150).all() and momentum.max() == pytest.approx(2 / 450)
    best = factors[..., 0] > factors[..., 0].median(-1, keepdim=True).values
    assert torch.equal(momentum > 1.5 / 450, best)


def test_ties_go_to_the_symbol_that_comes_first():
    got = weights_of([(1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (2.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)])
    assert got["MOMENTUM"] == pytest.approx([1 / 3, 1 / 6, 1 / 3, 1 / 6])
    assert got["LOW_VOL"] == got["QUALITY"] == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6])
    assert got["RISK_ON"] == pytest.approx([0.5, 0.0, 0.5, 0.0])


def test_missing_assets_have_no_weight_and_the_rest_is_shared():
    factors = [(9.0,) * 4, (3.0,) * 4, (2.0,) * 4, (1.0,) * 4]
    got = weights_of(factors, [False, True, True, True])
    alone = weights_of(factors[1:])
    for name in REGIMES:
        assert got[name] == pytest.approx([0.0, *alone[name]]), name


def test_an_unknown_factor_is_never_favoured():
    """Asset 0 is new: a half is taken of the other three (two of them), and it has a single share."""
    got = weights_of([(UNKNOWN, UNKNOWN, UNKNOWN, -5.0)] + [(float(-i),) * 3 + (-9.0 - i,) for i in range(3)])
    assert got["MOMENTUM"] == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 6])
    assert got["RISK_ON"] == pytest.approx([0.0, 1.0, 0.0, 0.0])
    assert got["SIZE_SMALL"] == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6])


def test_without_history_all_is_equal_and_with_nothing_judged_all_is_cash():
    none = [(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)] * 4
    got = weights_of(none, [True, True, False, True])
    third = [1 / 3, 1 / 3, 0.0, 1 / 3]
    for name in ("EQUAL_WEIGHT", "MOMENTUM", "LOW_VOL", "QUALITY", "SIZE_SMALL", "RISK_ON"):
        assert got[name] == pytest.approx(third)
    assert got["SAFE_MOMENTUM"] == got["SAFE_QUALITY"] == pytest.approx([0.7 * w for w in third])
    for weights in weights_of(none, [False] * 4).values():
        assert weights == [0.0] * 4


def test_factors_by_hand():
    """20 returns of +10% and -10% in turn, after one bar at 100."""
    close = 100 * np.cumprod([1.0] + [1.1, 0.9] * 10 + [1.1])
    factors = asset_factors(bars_of(close), {})
    assert np.isnan(factors[:20, :3]).all() and np.isfinite(factors[20:]).all()
    assert factors[20] == pytest.approx([0.99**10 - 1, -0.1, 0.0, -100 * 0.99**10], abs=1e-12)
    assert factors[21, 0] == pytest.approx(0.99**10 - 1) and factors[21, 3] == pytest.approx(-110 * 0.99**10)
    assert np.array_equal(factors[:, 3], -close)
    even = asset_factors(bars_of(np.full(30, 7.0)), {})
    assert even[25].tolist() == [0.0, 0.0, 0.0, -7.0]


def test_the_capitalisation_takes_the_place_of_the_price():
    size = np.array([5.0, np.nan, 0.0, 3e9])
    factors = asset_factors(bars_of([1.0, 2.0, 3.0, 4.0]), {"marketcap": size, "other": size})
    assert factors[:, 3].tolist()[::3] == [-5.0, -3e9] and np.isnan(factors[1:3, 3]).all()


def test_the_last_row_needs_the_last_bars_alone():
    """Bit for bit, from 21 bars, from `MEMORY`, from all: ranks hang on the last bit."""
    close = 100 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.01, 3_000)))
    whole = asset_factors(bars_of(close), {})
    for last in (21, 22, 37, 100, MEMORY):
        for end in (1_100, 2_999, 3_000):
            part = asset_factors(bars_of(close[end - last : end]), {})
            assert np.array_equal(part[-1], whole[end - 1])


def some_market(make_market, random_bars, seed: int = 1, ticks: int = 120):
    kinds = ({}, {"missing": 0.15}, {"listed": 50}, {"jump": 0.05, "missing": 0.05})
    bars = {f"S{i}/USD": random_bars(10 * seed + i, ticks, price=5.0 + i, sigma=0.03, **k) for i, k in enumerate(kinds)}
    return make_market(bars), bars


def test_the_table_is_causal(make_market, random_bars):
    market, bars = some_market(make_market, random_bars)
    _, other = some_market(make_market, random_bars, seed=2)
    table = Regimes().table(market, market.close.isfinite())
    assert table.shape == (120, 12, 4) and table.dtype == market.dtype
    for cut in (30, 71, 100):
        changed = make_market({s: bars[s][: cut + 1] + other[s][cut + 1 :] for s in bars})
        again = Regimes().table(changed, changed.close.isfinite())
        assert torch.equal(again[: cut + 1], table[: cut + 1])
        assert not torch.equal(again[cut + 1 :], table[cut + 1 :])


def test_the_order_of_the_symbols_is_that_of_the_weights(make_market, random_bars):
    market, bars = some_market(make_market, random_bars)
    back = make_market(dict(reversed(bars.items())))
    table, turned = (Regimes().table(m, m.close.isfinite()) for m in (market, back))
    assert torch.equal(turned.flip(-1), table)


def test_the_table_is_made_once(make_market, random_bars):
    market, _ = some_market(make_market, random_bars)
    one, two = (MarketVecEnv(market, n, action="regimes") for n in (1, 3))
    fewer = MarketVecEnv(market, 1, action="regimes", features=("return_1",))
    assert one._action_table is two._action_table is not fewer._action_table
    assert (fewer._action_table.sum(-1)[:, REGIMES.index("EQUAL_WEIGHT")] > 0).sum() > (
        one._action_table.sum(-1)[:, REGIMES.index("EQUAL_WEIGHT")] > 0
    ).sum()  # return_1 is known from the second bar
    judged = compute_features(market).ready & market.close.isfinite()
    assert torch.equal(one._action_table, Regimes().table(market, judged))
    assert MarketVecEnv(market, 1)._action_table is None


def test_hold_sends_nothing_and_cash_sells_all():
    held = ([100.0], [[3.0, 4.0]], [[1.0, 1.0]], [[0.0, 0.0]])
    account = Account(*(torch.tensor(x, dtype=torch.float64) for x in held))
    mark, judged = torch.tensor([[10.0, 20.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    rules = RuleTensors(*(torch.full((2,), x, dtype=torch.float64) for x in (1e-9, 1e-9, 1.0)))
    row = target_weights(torch.zeros(1, 2, 4, dtype=torch.float64), judged)

    def orders(name: str, judged=judged) -> list[float]:
        action = torch.tensor([REGIMES.index(name)])
        return Regimes().orders(action, account, equity(account, mark), mark, judged, rules, row)[0].tolist()

    assert orders("HOLD") == [0.0, 0.0]
    assert orders("FULL_CASH") == pytest.approx([-3.0, -4.0])
    # Equity 100 + 30 + 80 = 210: 105 of each.
    assert orders("EQUAL_WEIGHT") == pytest.approx([7.5, 1.25])
    assert orders("DEFENSIVE") == pytest.approx([2.25, -1.375])
    # Asset 1 has no bar: its 80 are not there to be shared out, and it is left alone.
    assert orders("EQUAL_WEIGHT", torch.tensor([[True, False]])) == pytest.approx([65 / 10 - 3, 0.0])
    with pytest.raises(ValueError, match="row"):
        Regimes().orders(torch.tensor([4]), account, equity(account, mark), mark, judged, rules)


def test_an_environment_reaches_the_weights(make_market, random_bars):
    """No costs: what is held after a step is what the table said at the bar of the decision, but for buys cut short."""
    market, _ = some_market(make_market, random_bars)
    fine = {s: AssetRule(1e-9, 1e-9, 0.0) for s in market.symbols}
    env = MarketVecEnv(market, 12, action="regimes", random_start=False, rules=RuleBook("crypto", fine), **FREE)
    env.reset()
    action = torch.arange(12)
    for _ in range(60):
        bar, target = env.bar.clone(), env.action_row(env.bar)[torch.arange(12), action]
        before = open_account(env.account.cash, 4)._replace(shares=env.account.shares.clone())
        judged, mark = env.bar_row(bar).judged, market.mark[bar]
        env.step(action)
        if not judged[0].all() or not market.tradable[bar + 1].all():
            continue
        wanted = target * equity(before, mark).unsqueeze(-1) / mark
        wanted[0] = before.shares[0]
        # Buys are cut where the price rose past what there is to pay with; sells never are.
        sold = wanted < before.shares
        assert torch.allclose(env.last_shares[sold], wanted[sold], rtol=1e-6, atol=1e-8)
        assert (env.last_shares <= torch.maximum(wanted, before.shares) + 1e-8).all()
    assert env.account.shares[0].sum() == 0 and env.account.shares[1].sum() == 0
    assert (env.account.shares[4] > 0).all()


def test_regimes_has_no_options():
    assert build_scheme("regimes") == Regimes() and Regimes().options == {}
    with pytest.raises(InputError, match="accepted are none"):
        build_scheme("regimes", window=5)
