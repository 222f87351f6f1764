"""Trade a market's champion, or any bundle, through a broker. Paper only: there is no option for live money."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from drl_agents.deployment.bundle import Bundle, load_bundle
from drl_agents.deployment.forecast import Forecast
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.deployment.succession import Succession
from drl_agents.deployment.trader import Hook, PaperTrader, Unreconciled
from drl_agents.deployment.venues import paper_trading, replaying
from drl_agents.training.commandline import DataOptions, OutputOptions, check_name, run
from drl_agents.training.interrupt import Interrupt
from environments.data.credentials import Secret, alpaca_keys
from environments.errors import InputError
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.broker import BrokerUnavailable
from environments.live.local import LocalBroker
from environments.live.risk import HALTED, RiskLimits

BROKERS = ("local", "alpaca-paper")
STOCK_FEEDS = ("iex", "sip")
LOCAL_KEYS = (Secret("local"), Secret("local"))


@dataclass(frozen=True)
class Options:
    """local: a venue in this process replays the bars it is given, with the costs and rules the model was trained with.
    alpaca-paper: Alpaca's paper venue, bars as they close; keys come from the environment or a .env file."""

    broker: str = "local"
    """local or alpaca-paper"""
    bundle: Path | None = None
    """folder of a bundle; default: the champion promoted last"""
    slot: str | None = None
    """which market's champion; default: the one promoted last"""
    replay_bars: int | None = None
    """of local: last bars to trade; default: those the model's study held out"""
    speed: float = 0.0
    """of local: seconds per bar; 0 as fast as it goes"""
    url: str | None = None
    """another venue that speaks Alpaca's protocol; of local: one that scripts/local_alpaca.py runs, without its
    --speed"""
    stock_feed: str = "iex"
    """of alpaca-paper, stocks: iex or sip"""
    fresh: bool = False
    """begin a new journal; else an interrupted trader of that name is gone on with (a replay in this process always
    begins anew)"""
    name: str = "paper"
    """name of this trader: its files go to <logs>/paper/<name>"""
    logs: Path = Path("logs")
    """folder everything is under"""
    risk: RiskLimits = field(default_factory=RiskLimits)
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    if options.broker not in BROKERS:
        raise InputError(f"broker {options.broker!r}: accepted are {', '.join(BROKERS)}")
    if not 0 <= options.speed < math.inf:
        raise InputError(f"--speed {options.speed}: accepted are seconds >= 0")
    if options.stock_feed not in STOCK_FEEDS:
        raise InputError(f"--stock-feed {options.stock_feed}: accepted are {', '.join(STOCK_FEEDS)}")
    check_name("--name", options.name, "<logs>/paper")
    refuse_unread(options)
    bundle, registry = chosen(options)
    hook: Hook = Forecast()
    with contextlib.ExitStack() as stack:
        if options.bundle is None and (options.broker != "local" or options.url is not None):
            # Who trades the champion follows it, and tries those who would replace it.
            hook = stack.enter_context(Succession(registry, slot_of(bundle.manifest["market"])))
        trader = stack.enter_context(opened(options, bundle, hook))
        interrupt = stack.enter_context(Interrupt("closing the books, press Ctrl-C again to stop at once"))
        try:
            result = trader.run(lambda: interrupt.requested)
        except (Unreconciled, BrokerUnavailable) as error:
            print(f"halted: {error}", file=sys.stderr)
            return 1
    growth = result.equity[-1] / (result.equity[0] * trader.flow_factor) - 1  # what was paid in is no return
    print(
        f"{trader.bundle.id[:12]} traded {result.equity.size - 1} bars: return {growth:+.2%}, "
        f"{result.n_fills} of {result.n_orders} orders filled"
    )
    print(f"equity, orders, state: {trader.folder}")
    if trader.state == HALTED:
        reasons = "; ".join(trader.risk.reasons) or "the account had too little left and was closed by force"
        print(f"halted: {reasons}", file=sys.stderr)
        return 130 if interrupt.requested else 1
    return 130 if interrupt.requested else 0


def refuse_unread(options: Options) -> None:
    """Raises InputError where something was given that the broker asked for does not read."""
    if options.bundle is not None and options.slot is not None:
        raise InputError("--slot: not read with --bundle, which says what is traded; leave one of them out")
    live = options.broker == "alpaca-paper"
    unread: list[str] = []
    if live or options.url is not None:
        default = DataOptions()
        changed = [
            item.name for item in fields(DataOptions) if getattr(options.bars, item.name) != getattr(default, item.name)
        ]
        unread += [name for name in changed if name != "gpu"]
        if options.replay_bars is not None:
            unread.append("replay_bars")
    if live and options.speed:
        unread.append("speed")
    if not live and options.stock_feed != Options.stock_feed:
        unread.append("stock_feed")
    if unread:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in unread)
        asked = "--broker alpaca-paper" if live else "--broker local" if options.url is None else "--url"
        whose = "bars and costs are its own" if options.url is not None or live else "it replays bars it is given"
        raise InputError(f"{named}: not read with {asked}, {whose}; leave {'it' if len(unread) == 1 else 'them'} out")


def chosen(options: Options) -> tuple[Bundle, Registry]:
    """The bundle that was asked for."""
    registry = Registry(options.logs)
    if options.bundle is not None:
        return load_bundle(options.bundle), registry
    bundle = registry.champion(options.slot or registry.newest_slot())
    if bundle is None:
        raise InputError(f"slot {options.slot!r} has no champion")
    return bundle, registry


@contextlib.contextmanager
def opened(options: Options, bundle: Bundle, hook: Hook) -> Iterator[PaperTrader]:
    """The trader, with its venue."""
    folder = options.logs / "paper" / options.name
    facts = {"limits": options.risk, "hook": hook}
    if options.broker == "alpaca-paper":
        keys = alpaca_keys(needed_for="--broker alpaca-paper")
        with paper_trading(
            bundle, keys, folder, options.name, url=options.url, stock_feed=options.stock_feed, fresh=options.fresh,
            **facts,
        ) as trader:  # fmt: skip
            yield trader
        return
    if options.url is not None:
        with replaying(
            bundle, options.url, LOCAL_KEYS, folder, options.name, pause=options.speed, fresh=options.fresh, **facts
        ) as trader:
            yield trader
        return
    market = options.bars.market()
    bundle.check_market(market)
    if list(market.symbols) != (own := bundle.manifest["market"]["symbols"]):
        raise InputError(
            f"bundle {bundle.id[:12]} trades {', '.join(own)}, the bars are of {', '.join(market.symbols)}: give "
            "its own; other symbols are for scripts/backtest.py"
        )
    count = options.replay_bars
    if count is None:
        count = bundle.manifest["lineage"]["data"]["holdout_bars"]
    if not 2 <= count <= market.n_bars:
        raise InputError(f"--replay-bars {count}: accepted are 2 to {market.n_bars}")
    env = bundle.env(market, (market.n_bars - count, market.n_bars))
    if market.extra_names:
        # Alpaca's protocol has no word for further columns: such a model is replayed without it.
        broker = LocalBroker(env, int(env.bar[0]), market.n_bars)
        yield PaperTrader(bundle, broker, folder, options.name, **facts)
        return
    with (
        LocalAlpaca(env, int(env.bar[0]), market.n_bars) as venue,
        # The venue ends with this process, so there is nothing of an earlier one to go on with.
        replaying(
            bundle, venue.url, LOCAL_KEYS, folder, options.name, pause=options.speed, fresh=True, **facts
        ) as trader,
    ):
        yield trader


if __name__ == "__main__":
    run(Options, main)
