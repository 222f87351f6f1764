"""Take a study's best model through the gate, and make it its market's champion if it passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drl_agents.deployment.gate import GateLimits
from drl_agents.deployment.job_plan import JobSettings
from drl_agents.deployment.registry import Registry
from drl_agents.deployment.replacer import Replacement, replace_best, study_settings, watch
from drl_agents.deployment.terms import Terms
from drl_agents.training.commandline import DataOptions, OutputOptions, run
from drl_agents.training.interrupt import Interrupt
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Give the bars the study was made with. Where a trader runs, what passed is tried in the champion's shadow first.
    Every decision goes to <logs>/deployment/audit.jsonl, each line with the digest of the one before."""

    study_name: str | None = None
    """name of the study"""
    once: bool = False
    """judge once and leave; else keep watching"""
    verify_log: bool = False
    """check the audit log and leave: status 1 and the first broken line where one is"""
    rollback: bool = False
    """put the champion before back, the present one into quarantine, and leave"""
    slot: str | None = None
    """which market's champion to roll back; default: the one promoted last"""
    interval: float = 600.0
    """seconds between two looks"""
    shadow_bars: int = 100
    """bars a challenger runs in the champion's shadow before it takes over"""
    positions: Literal["inherit", "flatten"] = "inherit"
    """what a new champion does with what is held: decide on it, or close it first"""
    health_bars: int = 100
    """bars after it took over in which it is rolled back if it fails"""
    max_loss: float = 0.1
    """fraction of the equity lost, in the shadow or after it took over, that ends it"""
    n_seeds: int = 3
    """seeds the best configuration is refitted with, at least 2: the median over them is judged beside the first's"""
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
    elif result.waits:
        print(f"trial {result.trial} passed the gate: it is the challenger, which the champion's trader tries")
    else:
        print(f"trial {result.trial} was refused:")
        for reason in result.verdict.reasons or ["it is in quarantine"]:
            print(f"  {reason}")


def main(options: Options) -> int:
    registry = Registry(options.logs)
    if options.verify_log:
        chain = registry.verify()
        print(f"{registry.audit.path}: {chain}")
        return 0 if chain.broken is None else 1
    if options.rollback:
        slot = options.slot or registry.newest_slot()
        with registry.exclusive():
            restored = registry.roll_back(slot, ["by hand"], {})
        print(f"{restored.id[:12]} is the champion of {slot} again; a trader that runs follows at its next bar")
        return 0
    if options.study_name is None:
        raise InputError("--study-name: needed, unless --verify-log or --rollback is given")
    if not options.interval > 0:
        raise InputError(f"--interval {options.interval}: more than 0 seconds is needed")
    if options.n_seeds < 2:
        raise InputError(f"--n-seeds {options.n_seeds}: at least 2 are needed, so that no model is judged alone")
    terms = Terms(options.shadow_bars, options.positions, options.health_bars, options.max_loss)
    asked = JobSettings(
        options.study_name, n_seeds=options.n_seeds, storage=options.storage, logs=options.logs, limits=options.limits
    )
    study, settings = study_settings(asked)
    market = options.bars.market()
    if options.once:
        tell(replace_best(study, market, settings, registry, terms=terms))
        return 0
    with Interrupt() as interrupt:
        watch(
            lambda last: replace_best(study, market, settings, registry, last, terms),
            options.interval,
            lambda: interrupt.requested,
            tell,
        )
    return 0


if __name__ == "__main__":
    run(Options, main)
