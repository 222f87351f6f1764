"""A venue, and traders to be killed on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.live.alpaca_local.server import LocalAlpaca
from environments.market import Market
from tests.reference.trader_runs import START, STOP
from tests.reference.trader_worker import Traders

MEMORY = Path("/dev/shm")
LAGGED = {"decision_lag": 2, "max_trade": 0.05}  # small enough that the cash never runs out while they wait


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    return make_market(
        {"BTCUSDT": random_bars(1, STOP, price=30_000.0), "DOGEUSDT": random_bars(2, STOP, price=0.1, sigma=0.03)}
    )


def made(market: Market, folder: Path, **options) -> Bundle:
    env = VectorizedCryptoEnvAlpaca(market, 1, **options)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(folder, policy, 0, env, "VectorizedCryptoEnvAlpaca", {"study": "s"}))


@pytest.fixture(scope="module")
def bundles(market, tmp_path_factory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {"plain": made(market, folder / "plain"), "lagged": made(market, folder / "lagged", **LAGGED)}


@pytest.fixture(scope="module")
def venue(market, bundles):
    with LocalAlpaca(bundles["plain"].env(market, (START, STOP)), START, STOP) as venue:
        yield venue


@pytest.fixture(scope="module")
def traders():
    with Traders() as traders:
        yield traders


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """Where traders write: in memory, where there is such a file system, else on disk.

    What SIGKILL leaves behind is what had been written, synced or not, so it is the same on both; a journal that syncs
    each of its writes only waits less.
    """
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="traders-", dir=MEMORY) as name:
        yield Path(name)
