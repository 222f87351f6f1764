"""scripts/train.py as it is used: runs on top of runs, Ctrl-C once and twice, resuming, sizes that do not fit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from drl_agents.agents.ppo import AgentPPO
from drl_agents.training.checkpoint import load_checkpoint
from drl_agents.training.runlock import RunLock
from scripts import train as train_script
from tests.reference.command_line import call_script

ROOT = Path(__file__).resolve().parents[2]
MARKET = "--data-source synthetic --synthetic-options n_bars=200 --hidden 8 --test-days 0".split()
SMALL = [*MARKET, "--n-envs", "4", "--n-steps", "8"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def call(capsys, tmp_path):
    """`call(*arguments)` of scripts/train.py -> (status, standard output, standard error); files go to tmp_path."""
    return lambda *arguments: call_script(train_script, [*arguments, "--logs", str(tmp_path)], capsys)


@pytest.fixture
def refused(call, tmp_path):
    """`refused(*arguments, says=(...))`: status 2, one line, and nothing changed."""

    def refused(*arguments: str, says: tuple[str, ...]) -> None:
        before = contents(tmp_path)
        status, out, err = call(*arguments, "--quiet")
        assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
        assert all(part in err for part in says), err
        assert contents(tmp_path) == before

    return refused


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["agent"]["policy"]


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------ runs on runs


def test_a_second_run_does_not_overwrite_the_first(call, refused, tmp_path):
    folder = tmp_path / "runs" / "train"
    assert call(*SMALL, "--iterations", "2")[0] == 0
    first = (folder / "checkpoint.pt").read_bytes()
    refused(*SMALL, "--iterations", "2", says=(str(folder), "--resume", "--fresh", "--run NAME"))
    for number in ("", ".2"):
        assert call(*SMALL, "--iterations", "1", "--fresh")[0] == 0
        assert (folder / f"checkpoint.pt{number}.old").exists() and (folder / f"run.jsonl{number}.old").exists()
    assert (folder / "checkpoint.pt.old").read_bytes() == first
    assert load_checkpoint(folder / "checkpoint.pt")["iteration"] == 1
    assert len((folder / "run.jsonl").read_text().splitlines()) == 2
    # A run killed before its first checkpoint has left a record at least.
    (folder / "checkpoint.pt").unlink()
    refused(*SMALL, "--iterations", "2", says=("holds a run",))


def test_what_was_judged_is_set_aside_too(call, tmp_path):
    folder = tmp_path / "runs" / "train"
    judged = [a for a in SMALL if a not in ("--test-days", "0")] + ["--test-days", "2", "--skip-posterior"]
    assert call(*judged, "--iterations", "1")[0] == 0
    before = contents(folder)
    shutil.copy(folder / "checkpoint.pt", tmp_path / "kept.pt")
    # The second run is not judged: what lies there would be taken for its own.
    assert call(*SMALL, "--iterations", "1", "--fresh")[0] == 0
    assert not (folder / "bundle").exists() and not (folder / "report").exists()
    after = contents(folder)
    for name, content in before.items():
        first, slash, rest = name.partition("/")
        if first in ("bundle", "report", "checkpoint.pt", "run.jsonl"):
            assert after[f"{first}.old{slash}{rest}"] == content
    assert {name.partition("/")[0] for name in before} >= {"bundle", "report"}
    (folder / "bundle.old").rename(folder / "bundle")
    assert call(*judged, "--iterations", "2", "--skip-posterior", "--checkpoint", str(tmp_path / "kept.pt"))[0] == 0
    assert (folder / "bundle.old").exists() and (folder / "bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--agent shac --env-options action=signal_size", "agent shac cannot train here"),
        ("--num-minibatches 1000", "num_minibatches=1000 is too many for 32 bars"),
        ("--agent sac --learning-starts 100000", "learning_starts=100000"),
        ("--network gru --hidden-dim 4 --clock-groups 2", "too many for 2 sequences"),
        ("--log-std nan", "log_std=nan: accepted are -20 to 2"),
        ("--log-std 100", "log_std=100.0: accepted are -20 to 2"),
    ],
)
def test_a_mistake_that_shows_late_leaves_the_earlier_run_as_it_was(call, refused, tmp_path, arguments, says):
    folder = tmp_path / "runs" / "train"
    folder.mkdir(parents=True)
    for name in ("checkpoint.pt", "run.jsonl", "run.lock.guard"):
        (folder / name).write_text("")
    refused(*SMALL, *arguments.split(), "--iterations", "2", "--fresh", says=(says,))
    if "shac" in arguments:
        refused("--env", "gym:CartPole-v1", "--agent", "shac", "--fresh", says=("agent shac cannot train here",))


def test_an_environment_without_bars_takes_no_options_of_bars(refused):
    gym = ["--env", "gym:CartPole-v1", "--iterations", "1"]
    for name, value in (("--data", "x"), ("--data-dir", "x"), ("--symbols", "A"), ("--timeframe", "1d"),
                        ("--start", "2020-01-01"), ("--end", "2021-01-01"), ("--test-days", "5"), ("--data-seed", "1"),
                        ("--gpu", "0")):  # fmt: skip
        refused(*gym, name, value, says=(f"--env gym:CartPole-v1 has no bars: give it without {name}",))
    refused(*gym, "--expanded", "--no-preprocessing", says=("without --expanded, --no-preprocessing",))


def test_resume_goes_on_and_ends_as_one_run(call, tmp_path):
    assert call(*SMALL, "--iterations", "2")[0] == 0
    # The number of environments need not be said again.
    status, out, _ = call(*MARKET, "--n-steps", "8", "--iterations", "5", "--resume")
    assert status == 0 and "3 iterations (5 with those before), 96 steps" in out
    status, out, _ = call(*SMALL, "--iterations", "5", "--resume")
    assert status == 0 and "nothing left to do: 5 iterations" in out
    assert call(*SMALL, "--iterations", "5", "--run", "whole")[0] == 0
    assert_same_weights(tmp_path / "runs" / "train" / "checkpoint.pt", tmp_path / "runs" / "whole" / "checkpoint.pt")


def test_resume_without_a_checkpoint_says_so_and_begins(call):
    status, out, err = call(*SMALL, "--iterations", "1", "--resume", "--quiet")
    assert status == 0 and "no checkpoint in" in err and "1 iterations" in out


def test_a_given_checkpoint(call, refused, tmp_path):
    folder, kept = tmp_path / "runs" / "train", tmp_path / "kept.pt"
    assert call(*SMALL, "--iterations", "2")[0] == 0
    shutil.copy(folder / "checkpoint.pt", kept)
    assert call(*SMALL, "--iterations", "4", "--resume")[0] == 0
    after = (folder / "checkpoint.pt").read_bytes()
    status, out, _ = call(*SMALL, "--iterations", "3", "--checkpoint", str(kept))
    assert status == 0 and "1 iterations (3 with those before), 32 steps" in out
    assert (folder / "checkpoint.pt.old").read_bytes() == after
    assert load_checkpoint(folder / "checkpoint.pt")["iteration"] == 3
    refused(*SMALL, "--iterations", "3", "--checkpoint", str(tmp_path / "none.pt"), says=("none.pt", "no such file"))


def test_checkpoints_of_other_runs_are_refused(call, refused, tmp_path):
    assert call(*SMALL, "--iterations", "1")[0] == 0
    go_on = [*SMALL, "--iterations", "2", "--resume"]
    refused(*go_on, "--hidden", "16", says=("network.hidden is [8] there and [16] here", "--fresh"))
    refused(*go_on, "--gamma", "0.9", says=("agent.gamma is 0.99 there and 0.9 here", "--fresh"))
    refused(*go_on, "--n-envs", "8", says=("n_envs is 4 there and 8 here",))
    refused(*go_on, "--data-seed", "1", says=("fingerprint",))
    refused(*go_on, "--fresh", says=("--fresh begins anew",))
    refused(*go_on, "--checkpoint", "c.pt", says=("--resume takes the run's newest",))


def test_a_live_run_is_left_alone(call, tmp_path):
    folder = tmp_path / "runs" / "train"
    with RunLock(folder / "run.lock"):
        status, _, err = call(*SMALL, "--iterations", "1", "--quiet")
    assert status == 2 and f"pid {os.getpid()}" in err and not (folder / "run.jsonl").exists()


# ------------------------------------------------------------------------------------------------- sizes


def test_sizes_by_their_other_names(call, refused, tmp_path):
    assert call(*SMALL, "--batch-size", "16", "--clock-groups", "2", "--iterations", "1")[0] == 0
    facts = load_checkpoint(tmp_path / "runs" / "train" / "checkpoint.pt")["record"]["facts"]
    assert (facts["n_envs"], facts["env_options"]) == (4, {"clock_groups": 2})
    assert (facts["agent"]["horizon_len"], facts["agent"]["num_minibatches"]) == (8, 2)
    other = [*SMALL, "--run", "other"]
    refused(*other, "--batch-size", "12", says=("--batch-size 12", "4 * 8 = 32"))
    refused(*other, "--batch-size", "1", says=("--batch-size 1", "at least 2"))
    refused(*other, "--clock-groups", "1", "--batch-size", "2", says=("--batch-size 2", "multiple of the 4"))
    refused(*other, "--batch-size", "16", "--num-minibatches", "8", says=("--batch-size", "--num-minibatches"))
    refused(*other, "--horizon-len", "16", says=("--n-steps 8", "--horizon-len 16"))
    # As it is by default, but said.
    refused(*other, "--batch-size", "16", "--num-minibatches", "4", says=("--batch-size", "--num-minibatches"))
    refused(*other, "--horizon-len", "128", says=("--n-steps 8", "--horizon-len 128"))
    refused(*other, "--clock-groups", "3", says=("clock_groups=3",))
    refused(*other, "--clock-groups", "0", says=("--clock-groups 0", "at least 1"))
    refused(*other, "--env-options", "clock_groups=2", "--clock-groups", "2", says=("clock_groups", "once"))
    refused(*other, "--checkpoint-every", "0", says=("--checkpoint-every 0", "at least 1"))
    refused(*other, "--amp", "fp8", says=("amp='fp8'", "bf16"))
    refused(*other, "--high-vram", "--low-vram", says=("--high-vram and --low-vram",))


def test_planned_sizes_are_kept_on_resume(call, refused, tmp_path):
    planned = [*MARKET, "--n-steps", "16", "--max-vram", "0.004"]
    status, out, err = call(*planned, "--iterations", "1")
    assert status == 0, err
    n_envs = int(re.search(r"planned n_envs (\d+), n_steps 16, batch size (\d+)", err)[1])
    assert n_envs >= 32 and n_envs & (n_envs - 1) == 0
    assert f"1 iterations, {16 * n_envs} steps" in out
    assert re.search(r"Memory: peak resident set .* planned .* MiB of it", out)
    status, out, err = call(*planned, "--iterations", "2", "--resume")
    assert status == 0 and "planned n_envs" not in err
    assert f"1 iterations (2 with those before), {16 * n_envs} steps" in out


def test_sizes_that_are_given_are_not_planned(call, refused):
    """Though they are what they would be by default; a shorter rollout or other minibatches would fit."""
    given = [*MARKET, "--n-envs", "8", "--max-vram", "0.00018", "--iterations", "1"]
    assert call(*given, "--quiet")[0] == 0
    says = ("n_envs 8, n_steps 128", "--max-vram 0.00018")
    refused(*given, "--run", "x", "--n-steps", "128", "--num-minibatches", "4", says=says)


@pytest.mark.parametrize("clocks", [(), ("--clock-groups", "2")])
def test_what_is_planned_is_accepted(call, refused, clocks):
    """Two sequences make two minibatches, whatever the default is; where four were asked for that is told."""
    own = [*MARKET, "--network", "gru", "--n-envs", "2", "--n-steps", "8", "--low-vram", "--iterations", "1", *clocks]
    status, _, err = call(*own)
    assert status == 0 and "planned n_envs 2, n_steps 8, batch size 8," in err and "n_envs is not planned" in err
    refused(*own, "--run", "x", "--num-minibatches", "4", says=("num_minibatches=4", "n_envs 2", "2 at most"))


def test_quiet_shows_the_result_alone(call):
    status, out, err = call(*SMALL, "--iterations", "2", "--quiet")
    assert (status, err) == (0, "") and out.startswith("2 iterations") and "Memory: peak resident set" in out


def test_a_run_that_diverges_ends_in_one_line(call, monkeypatch):
    update = AgentPPO.update

    def poisoned(agent, rollout):
        rollout.reward.fill_(torch.nan)
        return update(agent, rollout)

    monkeypatch.setattr(AgentPPO, "update", poisoned)
    status, out, err = call(*SMALL, "--iterations", "5", "--quiet")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert "training diverged: iteration 1, member 0" in err and "--learning-rate" in err


# ---------------------------------------------------------------------------------------------- signals


def start(logs: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "scripts/train.py", *arguments, "--logs", str(logs)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_ctrl_c_saves_and_the_run_goes_on_from_there(call, tmp_path):
    folder = tmp_path / "runs" / "train"
    victim = start(tmp_path, *SMALL, "--iterations", "100000")
    wait_for(folder / "run.jsonl", victim)
    victim.send_signal(signal.SIGINT)
    out, err = victim.communicate(timeout=60)
    assert victim.returncode == 130 and "Traceback" not in err and "finishing the current iteration" in err
    (saved,) = folder.glob("model_interrupted_*.pt")
    done = load_checkpoint(saved)["iteration"]
    assert saved.name.endswith(f"_{done}.pt") and str(saved) in out
    more = ["--iterations", str(done + 2)]
    assert call(*SMALL, *more, "--resume")[0] == 0
    assert call(*SMALL, *more, "--run", "whole")[0] == 0
    assert_same_weights(folder / "checkpoint.pt", tmp_path / "runs" / "whole" / "checkpoint.pt")


def test_a_second_ctrl_c_quits_at_once(tmp_path):
    # An iteration of this many steps takes far longer than the two signals.
    folder = tmp_path / "runs" / "train"
    victim = start(tmp_path, *MARKET, "--n-envs", "4", "--n-steps", "200000", "--iterations", "2")
    wait_for(folder / "run.lock", victim)
    time.sleep(0.5)
    victim.send_signal(signal.SIGINT)
    assert "press Ctrl-C again" in victim.stderr.readline()
    victim.send_signal(signal.SIGINT)
    _, err = victim.communicate(timeout=20)
    assert victim.returncode == 130 and "Traceback" not in err
    assert not list(folder.glob("*.pt")) and not (folder / "run.lock").exists()
