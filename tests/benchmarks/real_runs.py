"""The main job on four files of real bars, by the commands a user would type; writes real_runs.json.

    python -m tests.benchmarks.real_runs FOLDER_OF_BARS [OUTPUT_FOLDER]

Takes about twenty minutes on two idle cores. The bars are not part of the project.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environments.files import write_json

ROOT = Path(__file__).resolve().parents[2]
COINS = "BTCUSDT,ETHUSDT,LTCUSDT,LINKUSDT,UNIUSDT,AAVEUSDT,SOLUSDT,AVAXUSDT"
RUNS = {
    "crypto_5m_vectorized": ["crypto_5m_binance_2022_2023.parquet", "--timeframe", "5m", "--symbols", COINS],
    "dow30": ["us_daily_dow30_mega8_2004_2021.parquet", "--timeframe", "1d"],
    "us5m": ["us_5m_rth_2025.parquet", "--timeframe", "5m"],
    "nse": ["nse_daily_2018_2022.parquet", "--timeframe", "1d", "--symbols", "BPCL,HDFCLIFE,TATASTEEL"],
}


def command(name: str, bars: Path) -> list[str]:
    """The command line of one run, without the interpreter."""
    file, *options = RUNS[name]
    fixed = ["--study-name", name, "--n-trials", "20", "--n-envs", "12", "--seed", "0"]
    return ["scripts/optimize.py", "--data-source", "files", "--data", str(bars / file), *options, *fixed]


def summary(report: Path, seconds: float | None) -> dict[str, Any]:
    """The figures of a report that are worth keeping."""
    content = json.loads(report.read_text(encoding="utf-8"))
    facts = content["facts"]
    return {
        "data": {key: facts["data"][key] for key in ("fingerprint", "bars", "search_span", "holdout_span")},
        "trials": facts["study"]["trials"],
        "best_value": facts["study"]["best_value"],
        "objective": facts["objective"],
        "pbo": facts["overfitting"]["pbo"],
        "seed_sharpes": [seed["sharpe"]["value"] for seed in facts["seeds"]],
        "gate": facts["gate"],
        "paper_trade": facts["paper_trade"],
        "versions": facts["versions"],
        "wall_seconds": seconds,
    }


def main(bars: Path, out: Path) -> None:
    results = {}
    for name in RUNS:
        began = time.monotonic()
        line = [sys.executable, *command(name, bars), "--logs", str(out / "logs")]
        subprocess.run(line, cwd=ROOT, check=True)
        report = out / "logs" / "studies" / name / "report" / "report.json"
        results[name] = summary(report, time.monotonic() - began)
    write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2] if len(sys.argv) > 2 else "logs/real_runs").resolve())
