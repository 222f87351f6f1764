"""Trade a market's champion, or any bundle, through a broker. Paper only: there is no option for live money."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.registry import Registry
from drl_agents.deployment.trader import PaperTrader
from drl_agents.training.commandline import DataOptions, OutputOptions, run
from drl_agents.training.interrupt import Interrupt
from environments.errors import InputError
from environments.live.local import LocalBroker

BROKERS = ("local",)


@dataclass(frozen=True)
class Options:
    """The local broker replays the bars it is given, with the costs and rules the model was trained with."""

    broker: str = "local"
    """local"""
    bundle: Path | None = None
    """folder of a bundle; default: the champion promoted last"""
    slot: str | None = None
    """which market's champion; default: the one promoted last"""
    replay_bars: int | None = None
    """last bars to trade; default: those the model's study held out"""
    name: str = "paper"
    """name of this trader: its files go to <logs>/paper/<name>"""
    logs: Path = Path("logs")
    """folder everything is under"""
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    if options.broker not in BROKERS:
        raise InputError(f"broker {options.broker!r}: accepted are {', '.join(BROKERS)}")
    registry = Registry(options.logs)
    if options.bundle is not None:
        bundle = load_bundle(options.bundle)
    else:
        bundle = registry.champion(options.slot or registry.newest_slot())
        if bundle is None:
            raise InputError(f"slot {options.slot!r} has no champion")
    market = options.bars.market()
    bundle.check_market(market)
    held_out = bundle.manifest["lineage"]["data"]["holdout_bars"]
    count = options.replay_bars if options.replay_bars is not None else held_out
    if not 2 <= count <= market.n_bars:
        raise InputError(f"--replay-bars {count}: accepted are 2 to {market.n_bars}")
    env = bundle.env(market, (market.n_bars - count, market.n_bars))
    broker = LocalBroker(env, int(env.bar[0]), market.n_bars)
    folder = options.logs / "paper" / options.name
    with Interrupt("closing the books, press Ctrl-C again to stop at once") as interrupt:
        result = PaperTrader(bundle, broker, folder, options.name).run(lambda: interrupt.requested)
    growth = result.equity[-1] / result.equity[0] - 1
    print(
        f"{bundle.id[:12]} traded {result.equity.size - 1} bars: return {growth:+.2%}, "
        f"{result.n_fills} of {result.n_orders} orders filled"
    )
    print(f"equity, orders, state: {folder}")
    return 130 if interrupt.requested else 0


if __name__ == "__main__":
    run(Options, main)
