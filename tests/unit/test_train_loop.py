"""The training loop: what it plans, times, tells and records; what it does with members that diverge."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest
import torch
from rich.console import Console

from drl_agents.agents.compilation import WORTH_STEPS
from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.progress import PhaseClock, TrainProgress, span
from drl_agents.training.record import RunRecord
from drl_agents.training.trainer import Budget, TrainingDiverged, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 150, "n_assets": 2}, seed=1))


def build(market: Market, seeds=(1,), each=4, **config):
    n = len(seeds)
    env = VectorizedCryptoEnvAlpaca(market, each * n, n_members=n, episode_length=20, seed=list(seeds))
    config = PPOConfig(**{"horizon_len": 8, "num_minibatches": 2, "update_epochs": 1} | config)
    return AgentPPO(PolicySpec.of(env, hidden=(8,)), config, seeds), env


def test_all_members_that_diverged_are_named(market):
    agent, env = build(market, (1, 2, 3, 4))
    update = agent.update

    def poisoned(rollout):
        rollout.reward[:, 4:8] = torch.nan
        rollout.reward[:, 12:] = torch.inf
        return update(rollout)

    agent.update = poisoned
    with pytest.raises(TrainingDiverged, match="iteration 1, member 1") as caught:
        train(agent, env, Budget(iterations=2))
    assert caught.value.members == (1, 3)


@pytest.mark.parametrize(
    ("budget", "planned"),
    [(Budget(timesteps=100), [4 * 32 * 2]), (Budget(iterations=3), [3 * 32 * 2]), (Budget(episodes=1), [])],
)
def test_the_compiler_is_told_of_all_steps_of_all_members(market, budget, planned):
    """ceil(100 / (8 * 4)) = 4 iterations of 8 steps of 4 environments of each of 2 members."""
    agent, env = build(market, (1, 2))
    told = []
    agent.compiler.plan = told.append
    train(agent, env, budget)
    assert told == planned


def test_a_resumed_run_is_planned_as_the_whole_one(market, tmp_path):
    path, told = tmp_path / "c.pt", []
    for iterations in (2, 3):
        agent, env = build(market)
        agent.compiler.plan = told.append
        train(agent, env, Budget(iterations=iterations), checkpoint=path, resume=True)
    assert told == [2 * 32, 3 * 32] and told[-1] < WORTH_STEPS


def test_phases_are_told_and_timed(market, tmp_path):
    agent, env = build(market)
    explore, phases, lines = agent.explore_env, [], []

    def slow(*arguments):
        time.sleep(0.2)
        return explore(*arguments)

    agent.explore_env = slow
    train(
        agent,
        env,
        Budget(iterations=2),
        record=RunRecord(tmp_path, {}),
        on_phase=phases.append,
        on_iteration=lambda done, limit, figures: lines.append(figures),
    )
    assert phases == ["rollout", "update"] * 2
    assert [line["share"] for line in lines] == [0.5, 1.0]
    recorded = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()[1:]]
    for line, kept in zip(lines, recorded, strict=True):
        assert 0.2 <= line["rollout_seconds"] <= line["seconds"]
        assert line["rollout_seconds"] + line["update_seconds"] == pytest.approx(line["seconds"], abs=0.05)
        assert line["steps_per_second"] == pytest.approx(32 / line["seconds"])
        assert kept["seconds"] == line["seconds"] and kept["steps_per_second"] == line["steps_per_second"]
        assert "share" not in kept and "compile_seconds" not in kept


def test_the_clock_has_no_part_in_what_a_run_comes_to(market, tmp_path):
    """Two runs differ in nothing but what the record says is of the clock."""
    texts = []
    for name in ("a", "b"):
        agent, env = build(market)
        result = train(agent, env, Budget(iterations=3), record=RunRecord(tmp_path / name, {}))
        lines = [json.loads(line) for line in (tmp_path / name / "run.jsonl").read_text().splitlines()[1:]]
        clock = {key for key in lines[0] if "seconds" in key or "per_second" in key}
        assert clock == {"seconds", "rollout_seconds", "update_seconds", "steps_per_second"}
        texts.append([{k: v for k, v in line.items() if k not in clock} for line in lines])
        assert not clock & set(result.figures)
    assert texts[0] == texts[1]


def test_compiling_is_told_once_and_left_out_of_the_rate(market, tmp_path, caplog):
    agent, env = build(market)
    explore, progress = agent.explore_env, TrainProgress(None, env.device)

    def compiling(*arguments):
        if not agent.compiler.seconds:
            time.sleep(0.3)
            agent.compiler.seconds += 0.3
        return explore(*arguments)

    agent.explore_env = compiling
    with caplog.at_level(logging.INFO):
        result = train(
            agent, env, Budget(iterations=3), record=RunRecord(tmp_path, {}), on_iteration=progress.iteration
        )
    assert [r.getMessage() for r in caplog.records if "compiled in" in r.getMessage()] == [
        "compiled in 0 s, partly cached for the next run"
    ]
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()[1:]]
    assert [line.get("compile_seconds") for line in lines] == [0.3, None, None]
    assert lines[0]["steps_per_second"] == pytest.approx(32 / (lines[0]["seconds"] - 0.3))
    assert result.compile_seconds == 0.3
    assert result.steps_per_second == pytest.approx(96 / (result.seconds - 0.3))


# ------------------------------------------------------------------------------------------------ display

FIGURES = {"reward": 0.0123, "approx_kl": 0.0045, "explained_variance": 0.37, "steps_per_second": 12345.0}


def test_the_line_shows_what_is_going_on():
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    with TrainProgress(console, torch.device("cpu")) as progress:
        progress.begin(0.2)
        progress.phase("update")
        # A fifth of the budget in 10 s, 2 of them compiling; three fifths are left: 24 s.
        progress.iteration(4, 10, {**FIGURES, "seconds": 10.0, "compile_seconds": 2.0, "share": 0.4})
    shown = console.file.getvalue()
    for part in ("update", "4/10", "12,345 steps/s", "ETA 24s", "reward 0.012", "KL 0.0045", "explained variance 0.37"):
        assert part in shown, part


def test_the_line_fits_a_narrow_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with TrainProgress(console, torch.device("cpu")) as progress:
        progress.phase("rollout")
        progress.iteration(17, 400, {**FIGURES, "seconds": 1.0, "share": 17 / 400})
    last = [line for line in console.file.getvalue().splitlines() if "17/400" in line][-1]
    assert "rollout" in last and "…" not in last and "EV 0.37" in last


def test_nothing_is_shown_without_a_terminal(capsys):
    with TrainProgress(None, torch.device("cpu")) as progress:
        progress.iteration(1, 2, {**FIGURES, "seconds": 1.0, "share": 0.5})
    assert capsys.readouterr() == ("", "")


def test_lengths_of_time():
    assert [span(s) for s in (4.6, 185, 7620)] == ["5s", "3m05s", "2h07m"]


def test_the_phase_clock_starts_over():
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(2):
        clock.mark("rollout")
        time.sleep(0.02)
        clock.mark("update")
        clock.stop()
        read = clock.read()
        assert set(read) == {"seconds", "rollout_seconds", "update_seconds"}
        assert 0.02 <= read["rollout_seconds"] <= read["seconds"] < 1.0


# --------------------------------------------------------------------------------------------- on the GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_an_iteration_never_waits_for_the_device():
    """Neither exploring nor learning waits, or copies from or to the host: counted by the profiler."""
    bars = load_bars("synthetic", options={"kind": "gbm", "n_bars": 500, "n_assets": 2}, seed=1)
    market = Market.from_bars(bars, "cuda")
    env = VectorizedCryptoEnvAlpaca(market, 64, episode_length=50)
    # Random starts are drawn 128 steps at a time: a shorter rollout, so that one without a refill is seen too.
    config = PPOConfig(horizon_len=16, num_minibatches=2, update_epochs=2, compile="off")
    agent = AgentPPO(PolicySpec.of(env, hidden=(32, 32)), config, device=market.device)
    agent.policy.fit_normalizer(env)
    for _ in range(2):
        agent.update(agent.explore_vec_env(env, 16))
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        with torch.profiler.record_function("iteration"):
            agent.update(agent.explore_vec_env(env, 16))
        torch.cuda.synchronize()
    events = list(profiler.events())
    (iteration,) = [e for e in events if e.name == "iteration" and e.device_type == torch.autograd.DeviceType.CPU]
    own = iteration.time_range
    waits = [
        e.name
        for e in events
        if e.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
        and own.start <= e.time_range.start <= own.end
    ]
    # Copies within the device are kernels like others; these cross.
    copies = [e.name for e in events if e.name.startswith(("Memcpy HtoD", "Memcpy DtoH"))]
    assert (waits, copies) == ([], [])
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(agent.explore_vec_env(env, 16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
