"""Bundles: what is loaded is what was saved, or is refused by the name of what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment import bundle as bundle_module
from drl_agents.deployment.bundle import MANIFEST, WEIGHTS, load_bundle, save_bundle
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.rules import AssetRule, RuleBook

ENV = "VectorizedCryptoEnvAlpaca"
OPTIONS = {"kind": "signal", "n_bars": 120, "n_assets": 2}


def market_of(symbols=None, asset_class="crypto", timeframe="1h", **options) -> Market:
    kept = {k: v for k, v in {**OPTIONS, **options}.items() if v is not None}
    request = {"symbols": symbols, "asset_class": asset_class, "timeframe": timeframe}
    return Market.from_bars(load_bars("synthetic", options=kept, seed=1, **request))


@pytest.fixture(scope="module")
def market() -> Market:
    return market_of()


@pytest.fixture(scope="module")
def env(market):
    rules = RuleBook("crypto", {"SYN1": AssetRule(0.1, 0.2, 20.0)})
    return VectorizedCryptoEnvAlpaca(
        market, 1, lookback=3, decision_lag=2, fill_at="close", commission_bps=7.0, rules=rules, max_trade=0.4
    )


@pytest.fixture(scope="module")
def policy(env) -> ActorCritic:
    """Two members, so that the one that is saved has to be picked."""
    made = ActorCritic(PolicySpec.of(env, hidden=(16,)), seeds=(1, 2))
    halves = [[(0, 60)], [(60, 120)]]  # each member's normaliser its own
    made.fit_normalizer(VectorizedCryptoEnvAlpaca(env.market, 2, n_members=2, lookback=3, segments=halves))
    return made.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, policy, env) -> Path:
    return save_bundle(tmp_path_factory.mktemp("b") / "bundle", policy, 1, env, ENV, {"study": "s", "trial": 3})


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_outputs_after_loading_are_those_before(saved, policy, env):
    x = torch.randn(1, 50, env.single_observation_space.shape[0], generator=torch.Generator().manual_seed(1))
    x[0, :5, :4] = torch.nan  # unknown features are part of what a policy meets
    with torch.no_grad():
        expected = policy.mode(x.expand(2, -1, -1))[1:]
    decided = load_bundle(saved).decide(x)
    assert torch.equal(decided, expected)
    assert not torch.equal(decided, policy.mode(x.expand(2, -1, -1))[:1])


def test_the_environment_is_the_one_it_was_made_in(saved, env, market):
    own = load_bundle(saved).env(market, (60, 120))
    for name in (
        "lookback",
        "decision_lag",
        "fill_at",
        "frictions",
        "slippage_seed",
        "initial_cash",
        "ruin",
        "reward_name",
    ):
        assert getattr(own, name) == getattr(env, name), name
    assert own.scheme == env.scheme and own.features.names == env.features.names
    for ours, theirs in zip(own.rules[:3], env.rules[:3], strict=True):
        assert torch.equal(ours, theirs)
    assert own.rules[3:] == env.rules[3:] and own.margin == env.margin
    assert own.rules.min_notional.tolist() == [10.0, 20.0]
    assert load_bundle(saved).env(market, (60, 120), decision_lag=4).decision_lag == 4


def test_the_same_content_has_the_same_id(saved, policy, env, tmp_path):
    again = save_bundle(tmp_path / "again", policy, 1, env, ENV, {"study": "s", "trial": 3})
    other = save_bundle(tmp_path / "other", policy, 0, env, ENV, {"study": "s", "trial": 3})
    ids = [load_bundle(folder).id for folder in (saved, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert (again / MANIFEST).read_bytes() == (saved / MANIFEST).read_bytes()


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("bit", [0x01, 0x20, 0x2A])
def test_a_changed_byte_anywhere_is_found(copy, name, bit):
    """0x2A turns a blank into a line break, which means the same to a reader of JSON."""
    content = (copy / name).read_bytes()
    positions = np.unique(np.linspace(0, len(content) - 1, 60).astype(int))
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= bit
        (copy / name).write_bytes(bytes(changed))
        with pytest.raises(InputError) as refused:
            load_bundle(copy)
        message = str(refused.value)
        assert name in message and "\n" not in message, (position, message)
    (copy / name).write_bytes(content)
    assert load_bundle(copy).id


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_file_cut_short_is_found(copy, name, kept):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=name):
        load_bundle(copy)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(InputError, match=name):
        load_bundle(copy)


def test_no_folder_is_no_bundle(tmp_path):
    with pytest.raises(InputError, match=f"nowhere: no bundle there .*{MANIFEST}"):
        load_bundle(tmp_path / "nowhere")


def test_weights_of_another_shape_are_refused(copy, policy, env, tmp_path):
    """Both files whole, but of different bundles."""
    other = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(1,))
    folder = save_bundle(tmp_path / "other", other, 0, env, ENV, {})
    shutil.copy(folder / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(InputError, match=WEIGHTS):
        load_bundle(copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"] = json.loads((folder / MANIFEST).read_text())["files"]
    manifest["id"] = bundle_module._manifest_id(manifest)
    (copy / MANIFEST).write_text(bundle_module._manifest_text(manifest))
    with pytest.raises(InputError, match=f"{WEIGHTS}: does not fit the manifest"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("symbols", {"symbols": ("SYN1", "SYN0")}),
        ("symbols", {"symbols": ("SYN0",)}),
        ("timeframe", {"timeframe": "5m"}),
        ("asset_class", {"asset_class": "stock"}),
        ("extra", {"kind": "gbm"}),
    ],
    ids=["order", "fewer", "timeframe", "asset_class", "extra"],
)
def test_another_market_is_refused_by_field(saved, field, other):
    market = market_of(**other)
    bundle = load_bundle(saved)
    for attempt in (lambda: bundle.check_market(market), lambda: bundle.env(market, (60, 120))):
        with pytest.raises(InputError) as refused:
            attempt()
        message = str(refused.value)
        assert f"its {field} is" in message and "the market's is" in message and "\n" not in message


def test_a_market_of_later_bars_fits(saved):
    load_bundle(saved).check_market(market_of(n_bars=200))


def test_nothing_is_unpickled(copy, monkeypatch):
    """A pickle put in place of the weights is refused unread, even where the manifest vouches for it."""

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    payload = pickle.dumps(Trap())
    (copy / WEIGHTS).write_bytes(payload)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"] = {WEIGHTS: bundle_module.hashlib.sha256(payload).hexdigest()}
    manifest["id"] = bundle_module._manifest_id(manifest)
    (copy / MANIFEST).write_text(bundle_module._manifest_text(manifest))

    def refuse(*args, **options):
        pytest.fail("something was unpickled")

    for where, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(where, name, refuse)
    with pytest.raises(InputError, match=WEIGHTS):
        load_bundle(copy)


def test_loading_a_good_bundle_unpickles_nothing(saved, monkeypatch):
    def refuse(*args, **options):
        pytest.fail("something was unpickled")

    for where, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(where, name, refuse)
    assert load_bundle(saved).manifest["lineage"]["trial"] == 3


def test_a_crash_between_the_two_files_leaves_no_bundle_of_mixed_parts(copy, policy, env, monkeypatch):
    """Written over an older one: the new weights with the old manifest are refused, and saving again mends it."""
    write, done = bundle_module.write_atomic, []

    def dying(path, data):
        if done:
            raise OSError("the disk is gone")
        done.append(path)
        write(path, data)

    monkeypatch.setattr(bundle_module, "write_atomic", dying)
    with pytest.raises(OSError, match="disk is gone"):
        save_bundle(copy, policy, 0, env, ENV, {"trial": 4})
    with pytest.raises(InputError, match=WEIGHTS):
        load_bundle(copy)
    monkeypatch.setattr(bundle_module, "write_atomic", write)
    save_bundle(copy, policy, 0, env, ENV, {"trial": 4})
    assert load_bundle(copy).manifest["lineage"]["trial"] == 4


def test_stocks_too(tmp_path):
    market = market_of(asset_class="stock", timeframe="1d")
    env = VectorizedStockEnvAlpaca(market, 1, action="weights", sharpness=3.0)
    policy = ActorCritic(PolicySpec.of(env, hidden=(4,)), seeds=(1,))
    bundle = load_bundle(save_bundle(tmp_path / "b", policy, 0, env, "VectorizedStockEnvAlpaca", {}))
    assert bundle.env(market, (60, 100)).scheme == env.scheme
