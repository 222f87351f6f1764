"""Measure training: steps per second beside stable-baselines3 and SBX on the same work in the same run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.benchmark.machine import cpu_cores
from drl_agents.benchmark.race import Setup
from drl_agents.benchmark.report import as_text, failed, run_benchmark
from drl_agents.benchmark.work import Work
from drl_agents.training.commandline import OutputOptions, check_writable, run
from environments.errors import InputError
from environments.files import write_json


@dataclass(frozen=True)
class Options:
    """Peers need the extra: pip install -e ".[peers]". Without them they are reported as missing."""

    workload: tuple[str, ...] = ("iteration",)
    """iteration (with the peers), parts, lookback, transformer, scaling, search, gpu (CUDA alone), learning"""
    only: tuple[str, ...] = ()
    """configurations to run, by name, such as "ours 12" "sb3 12"; default: all"""
    peers: bool = True
    """time the other learners too"""
    repeats: int = 5
    """timings of each configuration, in turns"""
    seconds: float = 3.0
    """about how long one timing takes"""
    limit: float = 600.0
    """seconds a configuration may take to be ready (compiling included), and for a timing, before it is given up"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps"""
    threads: int | None = None
    """CPU threads of one operation, for every learner; default: all cores"""
    spin_count: int = 300_000
    """turns an OpenMP thread waits before it sleeps; lower it where other work uses the cores"""
    seeds: int = 10
    """runs of each configuration in the learning check"""
    iterations: int = 30
    """iterations each of these runs trains for"""
    out: Path | None = None
    """write everything measured to this JSON file"""
    work: Work = field(default_factory=Work)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    least = {"repeats": 1, "threads": 1, "spin_count": 0, "seeds": 2, "iterations": 1}
    for name, value in {**dict.fromkeys(("seconds", "limit"), 0.0), **least}.items():
        given = getattr(options, name)
        if given is not None and (given < value or (given == 0 and isinstance(value, float))):
            bound = "more than 0" if isinstance(value, float) else f"at least {value}"
            raise InputError(f"--{name.replace('_', '-')} {given}: {bound} is needed")
    if options.out is not None:
        check_writable("--out", options.out)
    setup = Setup(
        device=options.device,
        threads=options.threads if options.threads is not None else cpu_cores(),
        repeats=options.repeats,
        seconds=options.seconds,
        spin_count=options.spin_count,
        limit=options.limit,
    )
    results = run_benchmark(
        options.workload,
        options.work,
        setup,
        peers=options.peers,
        only=options.only,
        seeds=options.seeds,
        iterations=options.iterations,
        tell=logging.getLogger(__name__).info,
    )
    print(as_text(results), flush=True)
    if options.out is not None:
        write_json(options.out, results)
    return 1 if failed(results) else 0


if __name__ == "__main__":
    run(Options, main)
