"""scripts/benchmark.py as a whole, small; and that peers do the same work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.agents.compilation import WORTH_STEPS, why_not
from drl_agents.benchmark.competitors import HardwareMissing, our_competitor
from drl_agents.benchmark.gpu_busy import covered
from drl_agents.benchmark.peers import PeerMissing, peer_competitor, sb3_vec_env
from drl_agents.benchmark.plain_env import PlainMarketEnv
from drl_agents.benchmark.race import Setup, Timing, run_race
from drl_agents.benchmark.report import run_benchmark
from drl_agents.benchmark.results import highest_rise, judged, table, target_value, workload_results
from drl_agents.benchmark.work import Configuration, Work, build_agent, build_env
from drl_agents.benchmark.workloads import (
    EAGER,
    FOLDS,
    OWN_FOLDS,
    OWN_TRIALS,
    TRIAL_ENVS,
    TRIAL_STEPS,
    TRIALS,
    WORKLOADS,
    Target,
    trials_per_hour,
)
from drl_agents.evaluation.splits import combinatorial_purged
from drl_agents.search.objective import Workload as Search
from drl_agents.search.study import auto_population
from drl_agents.training.commandline import run
from drl_agents.training.record import code_version
from environments.errors import InputError
from environments.market_env import MarketVecEnv
from environments.observation import build_observation
from scripts import benchmark, optimize

ROOT = Path(__file__).resolve().parents[2]
TINY = Work(n_assets=3, n_bars=400, episode_length=50, hidden=(8,), samples=192)
TINY_OPTIONS = "--n-assets 3 --n-bars 400 --episode-length 50 --hidden 8 --samples 192".split()


# ------------------------------------------------------------------------------------------------- the script


def script(*options: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *options]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


def test_the_whole_script(tmp_path):
    """One of ours beside one of SB3's, all through: exit status, table, and every figure of the JSON file."""
    out = tmp_path / "benchmark.json"
    only = ["--only", "ours 12 eager", "sb3 12"]
    timing = ["--repeats", "3", "--seconds", "0.02", "--threads", "1", "--spin-count", "1000"]
    done = script(*only, *timing, *TINY_OPTIONS, "--out", str(out))
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert set(results) == {
        "started", "seconds", "quotable", "machine", "versions", "seeds", "work", "setup", "environment", "workloads",
        "learning",
    }  # fmt: skip
    assert results["quotable"] is False and "not to be quoted" in done.stdout
    assert results["work"] == json.loads(json.dumps(vars(TINY)))
    assert results["setup"] == {
        "device": "cpu", "threads": 1, "repeats": 3, "seconds": 0.02, "spin_count": 1000, "limit": 600.0,
    }  # fmt: skip
    assert results["environment"]["GOMP_SPINCOUNT"] == "1000" and results["environment"]["threads"] == 1
    assert results["seeds"] == {"market": 1, "agent": 0, "learning": []} and results["learning"] is None
    assert results["versions"]["code"] == code_version()
    assert results["versions"]["torch"] == torch.__version__ and results["versions"]["numpy"] == np.__version__
    assert {"cpu", "cores", "memory_gb", "load_average", "copy_gb_per_second"} <= set(results["machine"])
    assert results["machine"]["copy_gb_per_second"] > 0.1
    ours, peer = results["workloads"]["iteration"]["configurations"]
    assert [ours["name"], peer["name"]] == ["ours 12 eager", "sb3 12"]
    assert results["workloads"]["iteration"]["targets"] == []  # none is asked of these two
    assert_timed(ours)
    if results["versions"]["stable-baselines3"] is None:
        assert peer["status"] == "missing" and "stable-baselines3 is not installed" in done.stdout
        return
    assert_timed(peer)
    assert f"{peer['median_steps_per_second']:,.0f}" in done.stdout


def assert_timed(row: dict) -> None:
    assert row["status"] == "timed" and row["reason"] is None
    assert row["steps"] == 16 * 12 and row["calls"] >= 1 and len(row["seconds"]) == 3
    rates = [row["steps"] * row["calls"] / s for s in row["seconds"]]
    assert row["steps_per_second"] == pytest.approx(rates)
    assert row["median_steps_per_second"] == pytest.approx(sorted(rates)[1])
    assert row["microseconds_per_step"] == pytest.approx(1e6 / sorted(rates)[1])
    assert 0 < row["memory_mb"] < row["peak_resident_mb"] and row["first_call_seconds"] > 0


def test_wrong_input_is_one_line(capsys):
    with pytest.raises(SystemExit) as leaving:
        run(benchmark.Options, benchmark.main, ["--workload", "iterations"])
    told = capsys.readouterr()
    assert leaving.value.code == 2 and told.out == ""
    assert told.err == (
        "error: workload 'iterations': accepted are iteration, parts, lookback, transformer, scaling, search, gpu, "
        "learning\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--threads", "0"], "--threads 0: at least 1 is needed"),
        (["--repeats", "0"], "--repeats 0: at least 1 is needed"),
        (["--seconds", "0"], "--seconds 0.0: more than 0 is needed"),
        (["--limit", "-1"], "--limit -1.0: more than 0 is needed"),
        (["--spin-count", "-1"], "--spin-count -1: at least 0 is needed"),
        (["--seeds", "1"], "--seeds 1: at least 2 is needed"),
        (["--out", "FOLDER"], "--out FOLDER: a file is accepted, this is a folder"),
        (["--out", "FOLDER/file/results.json"], "--out FOLDER/file/results.json: cannot be written: "),
        (["--log-file", "FOLDER"], "--log-file FOLDER: a file is accepted, this is a folder"),
    ],
)
def test_what_would_lose_the_run_is_told_before_it(options, says, tmp_path, capsys, monkeypatch):
    """In one line that names the flag; nothing is timed."""
    monkeypatch.setattr(benchmark, "run_benchmark", lambda *args, **more: pytest.fail("it ran"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as leaving:
        run(benchmark.Options, benchmark.main, [option.replace("FOLDER", str(tmp_path)) for option in options])
    told = capsys.readouterr()
    assert leaving.value.code == 2 and told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("error: " + says.replace("FOLDER", str(tmp_path)))


@pytest.mark.parametrize(
    "names,more,message",
    [
        (["gpu"], {}, "workload gpu is for cuda, not cpu: give --device cuda"),
        (["parts"], {"only": ["ours 12"]}, "no workload that was asked for has ours 12: accepted are environment 1024"),
        (["learning"], {"only": ["sb3 12"]}, "no workload that was asked for has sb3 12: accepted are ours 12"),
        (["learning"], {"seeds": 1}, "seeds=1: the learning check compares at least 2"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_timed(names, more, message):
    with pytest.raises(InputError, match=message):
        run_benchmark(names, TINY, Setup(), **more)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"seconds": 0.0}, {"threads": 0}, {"limit": 0.0}])
def test_timing_that_measures_nothing_is_refused(wrong):
    with pytest.raises(InputError, match="accepted are >= 1"):
        Setup(**wrong)


def test_one_that_breaks_stops_no_other():
    """A lookback no segment holds, an option nobody has: each fails in its own process and says why in a line."""
    configurations = [
        Configuration("broken", 4, env={"lookback": 1_000}),
        Configuration("unknown", 4, agent={"speed": 2}),
        Configuration("environment", 4, part="environment", agent=EAGER),
    ]
    broken, unknown, fine = run_race(configurations, TINY, Setup(repeats=2, seconds=0.01, spin_count=1_000))
    assert (broken.status, broken.seconds) == ("failed", []) and "lookback=1000" in broken.reason
    assert unknown.status == "failed" and "'speed'" in unknown.reason and "\n" not in unknown.reason
    assert fine.status == "timed" and fine.compiled is False and len(fine.seconds) == 2 and fine.steps == 192


def test_one_that_takes_too_long_is_given_up():
    slow = Configuration("slow", 4, part="environment", agent=EAGER)
    (timing,) = run_race([slow], TINY, Setup(repeats=1, seconds=0.01, spin_count=1_000, limit=0.01))
    assert (timing.status, timing.reason, timing.seconds) == ("failed", "no answer within 0.01 s", [])


def test_every_configuration_can_be_built():
    work = replace(TINY, n_assets=1)
    market = work.market()
    for workload in WORKLOADS.values():
        names = [c.name for c in workload.configurations]
        assert len(set(names)) == len(names)
        assert all(set(target.names) <= set(names) for target in workload.targets)
        for configuration in workload.configurations:
            # Small, but with every option: n_envs a multiple of any number of clocks.
            if configuration.learner == "ours":
                few = replace(configuration, n_envs=min(64, configuration.n_envs), n_members=2)
                env = build_env(few, work, market)
                agent = build_agent(few, work, env, [0, 1])
                assert env.n_envs == 2 * few.n_envs and agent.config.horizon_len == few.horizon(work)
                assert agent.compiler.active is (few.agent.get("compile") != "off" and why_not() is None)


# ---------------------------------------------------------------------------------------- peers do the same work


@pytest.mark.parametrize("seed", [1, 2])
def test_the_plain_environment_keeps_the_same_books(seed):
    """Equity to 1e-6, observations, rewards and flags step by step, over an episode of random trades and a spree."""
    work = replace(TINY, n_bars=700, episode_length=300, market_seed=seed)
    market = work.market()
    core = build_env(Configuration("core", 1), work, market)
    plain = PlainMarketEnv(market, episode_length=300, commission_bps=work.commission_bps)
    assert plain.observation_space == core.single_observation_space
    assert plain.action_space == core.single_action_space
    observation = core.reset(seed)
    first, info = plain.reset(options={"start": int(core.bar)})
    assert info["bar"] == int(core.bar)
    np.testing.assert_allclose(first, build_observation(core.rows, observation, 1)[0], atol=1e-6)
    draw = np.random.default_rng(seed)
    for t in range(300):
        action = draw.uniform(-1.2, 1.2, 3).astype(np.float32)
        if t % 50 < 10:
            action = np.abs(action)  # buys alone: the cash runs out and is shared
        if t % 50 == 25:
            action[:] = -1.0
        step = core.step(torch.from_numpy(action).unsqueeze(0))
        seen, reward, terminated, truncated, info = plain.step(action)
        assert info["equity"] == pytest.approx(float(core.last_equity), rel=1e-6)
        assert reward == pytest.approx(float(step.reward), abs=1e-5)
        assert (terminated, truncated) == (bool(step.terminated), bool(step.truncated))
        np.testing.assert_allclose(seen, build_observation(core.rows, step.final_observation, 1)[0], atol=1e-5)
    assert truncated and info["equity"] < 90_000  # it traded: 30 bps of so many trades are dear


def test_the_plain_environment_refuses_a_market_with_gaps(make_market, random_bars):
    bars = {"A": random_bars(1, 300), "B": random_bars(2, 300, missing=0.1)}
    with pytest.raises(InputError, match="needs every bar of every asset"):
        PlainMarketEnv(make_market(bars), episode_length=50)
    with pytest.raises(InputError, match="hold no episode of 1000 bars"):
        PlainMarketEnv(make_market({"A": random_bars(1, 300)}))


def test_the_batched_environment_reaches_sb3_unchanged():
    """Observations, rewards and flags equal the environment's own; ended episodes carry their last observation."""
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra: peers)")
    market, configuration = TINY.market(), Configuration("batched", 5)
    core, view = build_env(configuration, TINY, market), sb3_vec_env(build_env(configuration, TINY, market))
    seen = view.reset()
    np.testing.assert_array_equal(seen, build_observation(core.rows, core.reset(), 1))
    draw, ended = np.random.default_rng(0), 0
    for _ in range(120):
        action = draw.uniform(-1, 1, (5, 3)).astype(np.float32)
        step = core.step(torch.from_numpy(action))
        own = build_observation(core.rows, step.observation, 1).numpy()
        last = build_observation(core.rows, step.final_observation, 1).numpy()
        kept = seen.copy()
        now, reward, done, infos = view.step(action)
        np.testing.assert_array_equal(seen, kept)  # what was handed out is not written over
        np.testing.assert_array_equal(now, own)
        np.testing.assert_array_equal(reward, step.reward.numpy())
        np.testing.assert_array_equal(done, (step.terminated | step.truncated).numpy())
        for i in range(5):
            if done[i]:
                assert infos[i]["TimeLimit.truncated"] == bool(step.truncated[i])
                np.testing.assert_array_equal(infos[i]["terminal_observation"], last[i])
                ended += 1
            else:
                assert infos[i] == {}
        seen = now
    assert ended == 10  # two episodes of 50 bars in each of five environments


@pytest.mark.parametrize("learner,module", [("sb3", "stable_baselines3"), ("sbx", "sbx")])
def test_a_peer_that_is_not_installed_is_named(learner, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # what Python keeps for a module it must not find
    with pytest.raises(PeerMissing, match=r"^(stable-baselines3|sbx-rl) is not installed \(extra: peers\)"):
        peer_competitor(Configuration("peer", 1, learner), TINY, TINY.market())


@pytest.mark.parametrize("batched", [False, True])
def test_sb3_makes_the_steps_it_is_timed_for(batched, one_thread):
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra: peers)")
    competitor = peer_competitor(Configuration("peer", 12, "sb3", batched=batched), TINY, TINY.market())
    with pytest.raises(RuntimeError, match="value loss"):
        competitor.check()
    competitor.call()
    competitor.call()
    competitor.check()
    model = competitor.call.__closure__[0].cell_contents
    assert competitor.steps == 192 and model.num_timesteps == 384
    assert (model.n_steps, model.batch_size, model.n_epochs) == (16, 48, 4)
    # An update counts epochs; the optimiser counted 2 iterations of 4 epochs of 4 minibatches.
    assert next(iter(model.policy.optimizer.state.values()))["step"] == 32


# --------------------------------------------------------------------------------------------- what is quoted


def timing(name: str, seconds: list[float], **more) -> Timing:
    return Timing(name, "timed", steps=100, calls=2, seconds=seconds, **more)


def test_targets_are_judged_round_by_round():
    """Three rounds of 200 steps, their ratios 4, 1 and 3: the median of those, not the medians' ratio."""
    fast, slow = timing("fast", [1.0, 4.0, 2.0], memory_mb=90.0), timing("slow", [4.0, 4.0, 6.0], memory_mb=30.0)
    known = {"fast": fast, "slow": slow, "gone": Timing("gone", "missing", "not there")}
    assert fast.steps_per_second == 100.0 and slow.steps_per_second == 50.0
    pair = ("fast", "slow")
    assert target_value(Target("", "speed-up", pair, 2.0), known) == 3.0
    assert target_value(Target("", "slow-down", pair, 2.0), known) == pytest.approx(1 / 3)
    assert target_value(Target("", "rate", ("fast",), 2.0), known) == 100.0
    assert target_value(Target("", "growth", pair, 2.0), known) == 3.0
    assert target_value(Target("", "rise", pair, 2.0), known) == pytest.approx(2.0)
    assert judged(Target("", "speed-up", pair, 3.0), known)["met"] is True
    assert judged(Target("", "speed-up", pair, 3.1), known)["met"] is False
    assert judged(Target("", "growth", pair, 2.9), known)["met"] is False
    assert judged(Target("", "speed-up", ("fast", "gone"), 3.0), known)["met"] is None
    with pytest.raises(ValueError, match="not known"):
        target_value(Target("", "speed", pair, 1.0), known)


def test_the_highest_rise_is_over_anything_before():
    assert highest_rise([2.0, 1.0, 1.5, 1.2, 1.3]) == 1.5
    assert highest_rise([4.0, 3.0, 2.0]) == pytest.approx(0.75)


def test_trials_per_hour():
    assert trials_per_hour(1e6 / 3.6) == pytest.approx(1_000)  # a million steps in 3.6 s


def test_a_kernel_that_overlaps_another_counts_once():
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
    assert covered([]) == 0.0


def test_the_results_of_a_workload_as_a_table():
    """Every figure in its place, a target beside what was measured, and a line for what is missing."""
    workload = WORKLOADS["search"].restricted(["one by one", "20 trials x 10 folds", "sb3 one by one"], peers=True)
    timings = [
        timing("one by one", [1.0, 2.0, 4.0], memory_mb=12.4, compiled=False),
        timing("20 trials x 10 folds", [0.25, 0.5, 1.0], memory_mb=50.0),
        Timing("sb3 one by one", "missing", "stable-baselines3 is not installed"),
    ]
    results = workload_results(workload, timings)
    assert [row["trials_per_hour"] for row in results["configurations"]] == pytest.approx([0.36, 1.44, None])
    assert [target["met"] for target in results["targets"]] == [True, None]
    lines = table({"workloads": {"search": results}}).splitlines()
    assert lines[1].split() == "search one by one no 100 50 200 10000.00 12".split()
    assert lines[5].split() == "search trials/hour over our one by one >= 3 4 yes".split()
    assert lines[6].split() == "search trials/hour over SB3's >= 10 not measured ?".split()
    assert lines[-1] == "search, sb3 one by one: missing, stable-baselines3 is not installed"
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_the_search_is_timed_as_optimize_would_run_it():
    market = TINY.market()
    folds = tuple(combinatorial_purged([(0, 400)], 5, 2, 1, 1, min_length=16))
    options = optimize.Options(n_trials=TRIALS, n_envs=TRIAL_ENVS)
    batch = -(-len(folds) // 2)  # as the main job halves them
    load = Search(market, folds, "VectorizedCryptoEnvAlpaca", options.n_envs, TRIAL_STEPS, batch)
    assert (len(folds), batch, auto_population(load, options.n_trials)) == (FOLDS, OWN_FOLDS, OWN_TRIALS)
    # And it compiles: both halves of the folds are of one shape.
    assert OWN_TRIALS * FOLDS * TRIAL_STEPS >= WORTH_STEPS


def test_without_peers_their_targets_go_too():
    kept = WORKLOADS["iteration"].restricted([], peers=False)
    assert {c.learner for c in kept.configurations} == {"ours"} and kept.targets == ()
    assert {c.learner for c in WORKLOADS["iteration"].configurations} == {"ours", "sb3", "sbx"}


def test_costs_are_commission_alone():
    env = build_env(Configuration("ours", 2), TINY, TINY.market())
    assert isinstance(env, MarketVecEnv) and env.frictions.commission_bps == 30.0
    assert (env.frictions.spread_bps, env.frictions.slippage_bps, env.frictions.impact_coef) == (0.0, 0.0, 0.0)


def test_what_the_machine_lacks_is_missing_and_no_failure(monkeypatch):
    """A CPU without instructions for bfloat16 takes thirty times as long: such a row would say nothing of the code."""
    lacking = {"bf16": "none here"}
    monkeypatch.setattr("drl_agents.benchmark.competitors.why_slow", lambda device, amp: lacking.get(amp))
    fast = Configuration("ours bf16", 4, agent={"amp": "bf16", "compile": "off"})
    with pytest.raises(HardwareMissing, match="none here"):
        our_competitor(fast, TINY, TINY.market())
    assert our_competitor(replace(fast, agent=EAGER), TINY, TINY.market()).compiled is False
