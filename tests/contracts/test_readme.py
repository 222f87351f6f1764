"""Every command and every Python block of the README runs, in a copy of the project, on less work than it names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from environments.data.source import load_bars

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["--n-trials", "2", "--timesteps", "400", "--n-seeds", "1", "--n-splits", "3", "--test-groups", "1"]
# What is added to a command, by its script: the last of two options of one name counts.
LESS = {
    "scripts/optimize.py": SMALL,
    "scripts/train.py": ["--iterations", "2"],
    "scripts/paper_trade.py": ["--replay-bars", "60"],
    "scripts/auto_replace_best.py": ["--n-seeds", "2"],
    "scripts/backtest.py": ["--last-bars", "100"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with a file of bars, so that nothing of the real logs/ is touched."""
    folder = tmp_path_factory.mktemp("readme") / "project"
    skip = shutil.ignore_patterns(".git", ".venv", "logs", "__pycache__", ".*_cache", "*.egg-info", "tests", "data")
    shutil.copytree(ROOT, folder, ignore=skip)
    shutil.copytree(ROOT / "environments" / "data", folder / "environments" / "data", dirs_exist_ok=True)
    bars = load_bars("synthetic", seed=1, timeframe="5m", options={"kind": "gbm", "n_bars": 900, "n_assets": 2}).frame
    bars["symbol"] = bars["symbol"].map({"SYN0": "BTCUSDT", "SYN1": "ETHUSDT"})
    bars.to_parquet(folder / "bars.parquet")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_readme_opens_with_the_two_commands():
    assert commands()[:2] == [["./start_vectorized_training.sh"], ["./scripts/test.sh"]]


def test_its_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path


def test_every_command_runs(project):
    for command in commands():
        if command == ["./scripts/test.sh"]:
            done = run(["bash", "-n", command[0]], project)  # this test is what it would run
        elif command == ["./start_vectorized_training.sh"]:
            assert run(["bash", command[0], "--help"], project).returncode == 0
            # What it ends in, without installing into the environment the tests run in.
            done = run([sys.executable, "scripts/launch.py", *SMALL], project)
            assert (
                "Using Vectorized Environments: 12 parallel envs"
                in (project / "logs" / "worker_vectorized.log").read_text()
            )
        else:
            assert command[0] == "python", command
            done = run([sys.executable, *command[1:], *LESS.get(command[1], [])], project)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert (project / "logs" / "studies" / "crypto_5m" / "report" / "report.png").stat().st_size > 10_000


def test_every_python_block_runs(project):
    for block in blocks("python"):
        done = run([sys.executable, "-c", block], project)
        assert done.returncode == 0, done.stderr
