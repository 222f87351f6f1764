"""Back-test a bundle on bars of its market and write a report: JSON with every figure and its unit, and a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.registry import Registry
from drl_agents.evaluation.backtest import backtest
from drl_agents.evaluation.baselines import hold_cash, hold_equal_weight
from drl_agents.evaluation.report import write_report, write_stress
from drl_agents.evaluation.stress import stress, stress_lines
from drl_agents.training.commandline import DataOptions, OutputOptions, run
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Costs, rules and observation are the bundle's own."""

    bundle: Path | None = None
    """folder of a bundle; default: the champion promoted last"""
    last_bars: int | None = None
    """last bars to walk; default: those the model's study held out"""
    decision_lag: int | None = None
    """bars between a decision and its fill; default: the bundle's"""
    stress: bool = False
    """walk the bars again under decision lags 1 to 3, slippage 0 to 10 bps and half to twice the commission"""
    out: Path = Path("logs/backtest")
    """folder of the report"""
    logs: Path = Path("logs")
    """folder the champion is looked up in"""
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    registry = Registry(options.logs)
    bundle = load_bundle(options.bundle) if options.bundle else registry.champion(registry.newest_slot())
    market = options.bars.market()
    bundle.check_market(market)
    count = options.last_bars if options.last_bars is not None else bundle.manifest["lineage"]["data"]["holdout_bars"]
    if not 2 <= count <= market.n_bars:
        raise InputError(f"--last-bars {count}: accepted are 2 to {market.n_bars}")
    window = (market.n_bars - count, market.n_bars)
    env = bundle.env(market, window, options.decision_lag)
    result = backtest(env, bundle.decide, ["model"])[0]
    lineage = bundle.manifest["lineage"]
    title = f"{bundle.id[:12]} of " + (f"study {lineage['study']}" if "study" in lineage else f"run {lineage['run']}")
    paths = write_report(
        options.out,
        title=title,
        model=result,
        baselines=[hold_equal_weight(env), hold_cash(env)],
        facts={
            "bundle": bundle.id,
            "lineage": lineage,
            "env": bundle.manifest["env"],
            "decision_lag": env.decision_lag,
        },
        synthetic=market.synthetic,
    )
    for name, figure in result.figures().items():
        value = "undefined" if figure["value"] is None else format(figure["value"], ".4g")
        print(f"{name:>18}: {value:>12}  {figure['unit']}")
    print(f"report: {paths.json}\npicture: {paths.png}")
    if options.stress:
        stressed = stress(partial(bundle.env, market, window), bundle.decide)
        for figure in ("sharpe", "total_return"):
            print("", *stress_lines(stressed, figure), sep="\n")
        paths = write_stress(options.out, title=f"Stress test of {title}", result=stressed, synthetic=market.synthetic)
        print(f"stress: {paths.json}\nheat map: {paths.png}")
    return 0


if __name__ == "__main__":
    run(Options, main)
