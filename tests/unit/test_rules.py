"""Order sizes by symbol: what a file may say, what it means, how it reaches the orders, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from drl_agents.training.config import read_rules, read_yaml
from environments.errors import InputError
from environments.market_env import MarketVecEnv
from environments.plugin import build_env
from environments.rules import AssetRule, RuleBook, default_rule, overridden_rule


def written(folder, text: str):
    path = folder / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_by_hand(tmp_path):
    path = written(
        tmp_path,
        "AAPL: {fractional: false}\nBRK.B: {fractional: false, increment: 10, min_notional: 50}\n"
        "MSFT:\n  min_quantity: 0.5  # half a share\nSPY: {}\n",
    )
    book = RuleBook.from_dict("stock", read_rules(path))
    assert book.rule("AAPL") == AssetRule(1.0, 1.0, 0.0)
    assert book.rule("BRK.B") == AssetRule(10.0, 1.0, 50.0)
    assert book.rule("MSFT") == AssetRule(1e-9, 0.5, 1.0)
    assert book.rule("SPY") == book.rule("NVDA") == default_rule("NVDA", "stock")
    crypto = RuleBook.from_dict("crypto", {"BTC/USD": {"increment": 0.01}, "ETH/USD": {"fractional": True}})
    assert crypto.rule("BTC/USD") == AssetRule(0.01, 0.0001, 10.0)
    assert crypto.rule("ETH/USD") == default_rule("ETH/USD", "crypto")


def test_text_is_text_and_numbers_are_numbers(tmp_path):
    """YAML 1.1 makes true of ON and text of 1e-4."""
    path = written(tmp_path, "ON: {increment: 1e-4}\nNO: {min_notional: 5}\nY: {fractional: false}\n'123': {}\n")
    assert read_rules(path) == {
        "ON": {"increment": 1e-4}, "NO": {"min_notional": 5.0}, "Y": {"fractional": False}, "123": {},
    }  # fmt: skip
    assert read_yaml(written(tmp_path, "a: [1, x, true]\nb: {c: {d: -2.5}}")) == {
        "a": [1.0, "x", True], "b": {"c": {"d": -2.5}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A: {incremnt: 1}", "rules of A: unknown key 'incremnt' (nearest: increment): accepted are increment, min_q"),
        ("A: {min_notinal: 1}", "(nearest: min_notional)"),
        ("A: {fractionl: false}", "(nearest: fractional)"),
        ("A: {zzz: 1}", "unknown key 'zzz': accepted are"),
        ("A: {increment: 0}", "increment is 0.0, accepted is a number > 0"),
        ("A: {increment: -1}", "increment is -1.0"),
        ("A: {min_quantity: -1}", "min_quantity is -1.0, accepted is a number >= 0"),
        ("A: {min_notional: .inf}", "min_notional is '.inf'"),
        ("A: {min_notional: inf}", "min_notional is inf"),
        ("A: {min_notional: nan}", "min_notional is nan"),
        ("A: {increment: few}", "increment is 'few'"),
        ("A: {increment: true}", "increment is True"),
        ("A: {increment: [1]}", "increment is [1.0]"),
        ("A: {fractional: 0}", "fractional is 0.0, accepted are true, false"),
        ("A: {fractional: no}", "fractional is 'no', accepted are true, false"),
        ("A: {fractional: false, increment: 0.5}", "increment is 0.5, whole shares need a whole number"),
        ("A: 3", "rules of A: 3.0 is no table of increment"),
        ("A:", "rules of A: '' is no table"),
        ("A: {increment: 1}\nA: {increment: 2}", "rules.yaml, line 2: A is given twice"),
        ("A: {increment: 1, increment: 2}", "rules.yaml, line 1: increment is given twice"),
        ("A: {increment: 1", "rules.yaml, line 1"),
        ("- A", "rules.yaml: a table is needed"),
        ("", "rules.yaml: a table is needed"),
        ("? [A]\n: {increment: 1}", "rules.yaml, line 1"),
        ("A: !!python/object/apply:os.getcwd []", "no table"),
    ],
)
def test_what_a_file_cannot_mean_is_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(InputError) as error:
        RuleBook.from_dict("stock", read_rules(written(tmp_path, text)))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_rules(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_rules(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_rules(tmp_path / "bytes.yaml")


def test_rules_reach_the_orders(make_market, random_bars):
    """Whole shares of one, the venue's nine decimals of the other; what the book writes down is the book again."""
    bars = {s: random_bars(i, 90, price=70.0) for i, s in enumerate(("AAPL", "MSFT"))}
    market = make_market(bars, asset_class="stock")
    rules = {"AAPL": {"fractional": False}}
    env = build_env("VectorizedStockEnvAlpaca", market, 3, rules=rules, initial_cash=5_000.0)
    part = 0.0
    for _ in range(40):
        env.step(torch.rand(3, 2) * 2 - 1)
        assert torch.equal(env.last_shares[:, 0], env.last_shares[:, 0].round())
        part += float((env.last_shares[:, 1] - env.last_shares[:, 1].round()).abs().sum())
    assert part > 1
    book = json.loads(json.dumps(env.rule_book.to_dict(market.symbols)))
    again = RuleBook.from_dict("stock", book)
    assert [again.rule(s) for s in market.symbols] == [AssetRule(1.0, 1.0, 0.0), default_rule("MSFT", "stock")]
    with pytest.raises(InputError, match="rules name APPL, but the market holds AAPL, MSFT"):
        MarketVecEnv(market, 1, rules={"APPL": {"fractional": False}})


def test_a_rule_is_checked_where_it_is_made():
    with pytest.raises(InputError, match="asset class 'bond'"):
        overridden_rule("A", "bond", {})
