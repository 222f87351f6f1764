"""Measure the gate: how much noise it deploys, and how much of a planted edge. Goes on where it was stopped."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from drl_agents.deployment.calibration import (
    COMMON,
    EDGE,
    NOISES,
    Pipeline,
    best_rule,
    judge_market,
    read_lines,
    summary,
)
from drl_agents.deployment.gate import GateLimits
from drl_agents.training.commandline import OutputOptions, run
from drl_agents.training.interrupt import Interrupt
from drl_agents.training.record import versions
from environments.errors import InputError
from environments.files import write_json


@dataclass(frozen=True)
class Options:
    """Each made-up market goes through study, refit and gate; one line per market is kept in --record."""

    noise: int = 200
    """markets without an edge"""
    edge: int = 50
    """markets with a planted edge of annual Sharpe ratio 3"""
    minutes: float = 600.0
    """stop after so many minutes; the same command goes on"""
    record: Path = Path("logs/gate_calibration.jsonl")
    """one JSON line per market"""
    table: Path | None = None
    """JSON file of the rates, written when every market is judged"""
    pipeline: Pipeline = field(default_factory=Pipeline)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    if options.noise < 0 or options.edge < 0 or options.noise + options.edge < 1:
        raise InputError(f"--noise {options.noise} --edge {options.edge}: at least one market is needed")
    if options.pipeline.n_seeds < 1:
        raise InputError(f"n_seeds={options.pipeline.n_seeds}: at least 1 is needed")
    torch.set_num_threads(1)  # networks this small are slower with more
    until = time.monotonic() + 60 * options.minutes
    lines = read_lines(options.record, options.pipeline)
    done = {(line["kind"], line["index"]) for line in lines}
    wanted = [("noise", i) for i in range(options.noise)] + [("edge", i) for i in range(options.edge)]
    # Both kinds from the start: a figure of an unfinished run says something of each.
    wanted.sort(key=lambda market: (market[1] / (options.noise if market[0] == "noise" else options.edge), market[0]))
    options.record.parent.mkdir(parents=True, exist_ok=True)
    with Interrupt("finishing the current market, press Ctrl-C again to stop at once") as interrupt:
        for kind, index in (market for market in wanted if market not in done):
            if interrupt.requested or time.monotonic() > until:
                break
            line = {**judge_market(kind, index, options.pipeline), "pipeline": asdict(options.pipeline)}
            with options.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
            done.add((kind, index))
    counted = [line for line in lines if (line["kind"], line["index"]) in set(wanted)]
    rates = summary(counted)
    for kind, rate in rates.items():
        low, high = rate["interval_95"]
        print(f"{kind}: {rate['deployed']} of {rate['markets']} deployed, {rate['rate']:.1%} ({low:.1%} to {high:.1%})")
    if len(counted) < len(wanted):
        print(f"{len(counted)} of {len(wanted)} markets are judged: the same command goes on ({options.record})")
        return 0
    if options.table is not None:
        facts = {
            "limits": asdict(GateLimits()),
            "pipeline": asdict(options.pipeline),
            "worlds": {"common": COMMON, "noise": NOISES, "edge": EDGE},
            "planted": best_rule(EDGE),
            "seconds_per_market": round(sum(line["seconds"] for line in counted) / len(counted), 2),
            "versions": versions(),
        }
        write_json(options.table, {**rates, **facts})
        print(f"rates: {options.table}")
    return 0


if __name__ == "__main__":
    run(Options, main)
