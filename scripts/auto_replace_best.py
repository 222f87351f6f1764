"""Take a study's best model through the gate, and make it its market's champion if it passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.deployment.gate import GateLimits
from drl_agents.deployment.main_job import JobSettings
from drl_agents.deployment.registry import Registry
from drl_agents.deployment.replacer import Replacement, replace_best, study_settings, watch
from drl_agents.training.commandline import DataOptions, OutputOptions, run
from drl_agents.training.interrupt import Interrupt
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Give the bars the study was made with. Every promotion and refusal goes to <logs>/deployment/audit.jsonl."""

    study_name: str
    """name of the study"""
    once: bool = False
    """judge once and leave; else keep watching"""
    interval: float = 600.0
    """seconds between two looks"""
    n_seeds: int = 3
    """seeds the best configuration is refitted with"""
    storage: str | None = None
    """Optuna storage, if the study is not in its folder's journal file"""
    logs: Path = Path("logs")
    """folder everything is under"""
    limits: GateLimits = field(default_factory=GateLimits)
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def tell(result: Replacement) -> None:
    if result.skipped:
        print(result.skipped)
    elif result.deployed:
        print(f"trial {result.trial} passed the gate and is the champion now: {result.deployed}")
    else:
        print(f"trial {result.trial} was refused:")
        for reason in result.verdict.reasons:
            print(f"  {reason}")


def main(options: Options) -> int:
    if not options.interval > 0:
        raise InputError(f"--interval {options.interval}: more than 0 seconds is needed")
    asked = JobSettings(
        options.study_name, n_seeds=options.n_seeds, storage=options.storage, logs=options.logs, limits=options.limits
    )
    study, settings = study_settings(asked)
    market = options.bars.market()
    registry = Registry(options.logs)
    if options.once:
        tell(replace_best(study, market, settings, registry))
        return 0
    with Interrupt() as interrupt:
        watch(
            lambda last: replace_best(study, market, settings, registry, last),
            options.interval,
            lambda: interrupt.requested,
            tell,
        )
    return 0


if __name__ == "__main__":
    run(Options, main)
