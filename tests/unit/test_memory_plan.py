"""The memory planner: counts that are exact, a formula that is recovered, and predictions that hold within a tenth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drl_agents.agents import pieces
from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training import device as devices
from drl_agents.training.device import GIB, MemoryOptions
from drl_agents.training.memory import Footprint, MemoryModel, Meter, Sizes
from drl_agents.training.memory_plan import MAX_ENVS, plan_sizes
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BARS = 200
KIB = 1024


def test_the_meter_counts_every_byte():
    meter = Meter(CPU)
    meter.phase("first")
    kept = torch.empty(1000)  # 4000 bytes
    torch.empty(500).fill_(1)  # 2000 more, released at once
    meter.phase("second")
    other = torch.empty(250)
    meter.phase("third")
    del kept
    last = torch.empty(10, dtype=torch.int64)
    meter.stop()
    assert meter.peaks == {"first": 6000, "second": 5000, "third": 5000}
    assert other.numel() + last.numel() == 260


@pytest.mark.parametrize("groups", [None, 4])
def test_a_formula_is_recovered_from_six_sizes(groups):
    """a + b N + c N T + d m, and where clocks are shared + e T C + f m C / N."""

    def peak(s: Sizes) -> int:
        own = 1000 + 300 * s.n_envs + 40 * s.n_envs * s.horizon_len + 500 * s.batch_size
        return int(own if groups is None else own + 60 * s.horizon_len * groups + 70 * s.batch_size * groups / s.n_envs)

    probes = [Sizes(n, t, 4) for n in (32, 64) for t in (64, 128)] + [Sizes(n, 128, 8) for n in (32, 64)]
    model = MemoryModel.fit([(s, {"learning": peak(s), "rollout": 7}, {}) for s in probes], groups)
    for sizes in (Sizes(1024, 128, 4), Sizes(256, 512, 16)):
        assert model.phases(sizes) == pytest.approx({"learning": peak(sizes), "rollout": 7}, rel=1e-6)
        assert model.peak(sizes) == pytest.approx(peak(sizes), rel=1e-6)


# ------------------------------------------------------------------------------------------ predictions


def build(market: Market, groups: int | None, lookback: int = 1, **network):
    network = network or {"hidden": (32, 32)}

    def build(sizes: Sizes):
        clocks = sizes.clock_groups or groups
        env = VectorizedCryptoEnvAlpaca(market, sizes.n_envs, lookback=lookback, episode_length=50, clock_groups=clocks)
        config = PPOConfig(
            horizon_len=sizes.horizon_len, num_minibatches=sizes.num_minibatches, update_epochs=2, compile="off"
        )
        agent = AgentPPO(PolicySpec.of(env, **network), config)
        agent.policy.fit_normalizer(env)
        return agent, env

    return build


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": BARS, "n_assets": 2}, seed=1))


def measured(make, sizes: Sizes, iterations: int) -> int:
    """Peak bytes of a whole run: built, trained, nothing of the planner's in it."""
    meter = Meter(CPU)
    meter.phase("run")
    agent, env = make(sizes)
    train(agent, env, Budget(iterations=iterations))
    meter.stop()
    return meter.peaks["run"]


TRANSFORMER = {"network": "transformer", "d_model": 16, "num_layers": 1, "n_heads": 2, "hidden": (16,), "lookback": 8}


@pytest.mark.parametrize(
    ("groups", "network", "budget"),
    [(None, {}, 8), (8, {}, 8), (None, TRANSFORMER, 24), (8, TRANSFORMER, 24)],
    ids=["own clocks", "shared clocks", "encoder", "encoder, shared clocks"],
)
def test_a_planned_run_takes_what_was_predicted(market, groups, network, budget):
    make, budget = build(market, groups, **network), budget * 2**20
    footprint = Footprint(make, CPU, BARS, groups)
    plan = plan_sizes(footprint, Sizes(12, 32, 4), frozenset({"n_envs"}), (budget, "a test"))
    assert plan.predicted * 1.1 <= budget < 1.1 * footprint.peak(Sizes(2 * plan.sizes.n_envs, 32, 4))
    assert plan.sizes.samples >= 4 * 32 * 32, "no larger than what was measured"
    taken = measured(make, plan.sizes, 2)
    assert taken == pytest.approx(plan.predicted, rel=0.1)
    assert taken > 2**20


def test_pieces_of_a_minibatch_are_known_to_the_plan(market, monkeypatch):
    """The largest minibatch that is not cut takes more than one of twice its size: a straight line through what was
    measured of both kinds would be a third off."""
    monkeypatch.setattr(pieces, "PIECE", 512)
    make = build(market, None)
    footprint = Footprint(make, CPU, BARS)
    for sizes in (Sizes(32, 32, 1), Sizes(128, 32, 1)):
        assert measured(make, sizes, 2) == pytest.approx(footprint.peak(sizes), rel=0.1)


# -------------------------------------------------------------------------------------------------- plans


class Linear:
    """A footprint by hand: 1 KiB per sample and 10 KiB per sample of a minibatch; half of both in bf16."""

    clock_groups: int | None = None

    def most_minibatches(self, sizes: Sizes) -> int:
        return sizes.samples // 2

    def peak(self, sizes: Sizes) -> float:
        return (sizes.samples + 10 * sizes.batch_size) * KIB * (0.5 if sizes.amp == "bf16" else 1.0)


START = Sizes(12, 128, 4)
ALL = frozenset({"n_envs", "horizon_len", "num_minibatches", "amp"})


def plan(budget_kib: float, free=ALL, start=START, **options):
    return plan_sizes(Linear(), start, frozenset(free), (budget_kib * KIB, "a test"), **options)


def test_the_most_environments_that_fit():
    # N * 128 * (1 + 10 / 4) KiB * 1.1 <= 100,000 KiB: N <= 202.9.
    found = plan(100_000)
    assert found.sizes == Sizes(128, 128, 4) and found.predicted == 128 * 128 * 3.5 * KIB
    assert "n_envs 128, n_steps 128, batch size 4096, float32" in found.reason
    assert "twice the environments would take 0.109 GiB" in found.reason and "a test" in found.reason


def test_a_budget_of_steps_leaves_ten_iterations():
    assert plan(1e9, max_samples=10_000).sizes.n_envs == 64
    assert "fewer than 10 iterations" in plan(1e9, max_samples=10_000).reason
    assert plan(1e12).sizes.n_envs == MAX_ENVS


def test_what_is_given_up_in_turn():
    # 12 * 128 samples take (1536 + 10 * m) KiB: with m = 384 5376, with m = 192, too small to train on, 3456.
    fixed = ALL - {"n_envs"}
    assert plan(6_000, fixed).sizes == START
    assert plan(5_000, fixed).sizes == Sizes(12, 64, 4)
    wide = Sizes(1200, 128, 4)
    assert plan(400_000, fixed, wide).sizes == Sizes(1200, 128, 8)
    assert plan(1_000, fixed, reduced="bf16").sizes == Sizes(12, 32, 4, "bf16")
    assert plan(1_000, fixed - {"amp"}, reduced="bf16").sizes == Sizes(12, 16, 4)
    with pytest.raises(InputError, match=r"n_envs 12, n_steps 16.*a test"):
        plan(100, fixed)


def test_a_given_batch_size_is_kept():
    found = plan(100_000, ALL, batch_size=2048)
    assert found.sizes == Sizes(512, 128, 32) and found.sizes.batch_size == 2048
    with pytest.raises(InputError, match="--batch-size 300"):
        plan(100_000, {"n_envs"}, batch_size=300)


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("options", "device", "gib", "says"),
    [
        ({"high_vram": True}, "cuda:0", 36.0, "90% of 40 GiB GPU memory, --high-vram"),
        ({"low_vram": True}, "cuda:1", 18.0, "45% of 40 GiB GPU memory, --low-vram"),
        ({"max_vram": "20,10"}, "cuda:0", 20.0, "--max-vram 20,10"),
        ({"max_vram": "20,10"}, "cuda:1", 10.0, "--max-vram 20,10"),
        ({"max_vram": "5"}, "cuda:1", 5.0, "--max-vram 5"),
        ({"max_vram": "5", "high_vram": True}, "cuda:1", 5.0, "--max-vram 5"),
        ({"max_vram": "39", "low_vram": True}, "cuda:1", 18.0, "--low-vram"),
        ({"max_vram": "80"}, "cuda:0", 38.0, "all that is free of 40 GiB GPU memory"),
    ],
)
def test_budgets(monkeypatch, options, device, gib, says):
    monkeypatch.setattr(devices, "memory_size", lambda device: (40 * GIB, 38 * GIB))
    found, source = MemoryOptions(**options).budget(torch.device(device))
    assert found == pytest.approx(gib * GIB) and says in source


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"high_vram": True, "low_vram": True}, "--high-vram and --low-vram"),
        ({"max_vram": "lots"}, "--max-vram lots: GiB"),
        ({"max_vram": "0"}, "--max-vram 0: GiB"),
        ({"max_vram": "45,"}, "--max-vram 45,: GiB"),
        ({"max_vram": "45,20"}, "2 numbers, but the run is on GPU 2"),
    ],
)
def test_budgets_that_are_none(monkeypatch, options, says):
    monkeypatch.setattr(devices, "memory_size", lambda device: (40 * GIB, 38 * GIB))
    with pytest.raises(InputError, match=says):
        MemoryOptions(**options).budget(torch.device("cuda:2"))


def test_ram_is_the_budget_without_a_gpu():
    budget, source = MemoryOptions(low_vram=True).budget(CPU)
    assert 0 < budget < 2**50 and "available RAM" in source
    assert np.isfinite(budget)
