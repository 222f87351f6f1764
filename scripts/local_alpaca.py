"""A venue of your own: bars replayed behind Alpaca's protocol, for alpaca-py or any other client of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.deployment.bundle import load_bundle
from drl_agents.training.commandline import DataOptions, OutputOptions, parse_options, run
from drl_agents.training.interrupt import Interrupt
from environments.alpaca_env import default_env
from environments.errors import InputError
from environments.live.alpaca_local.faults import FaultPlan
from environments.live.alpaca_local.server import LocalAlpaca


@dataclass(frozen=True)
class Options:
    """On this machine only, and no money is in it. It serves until Ctrl-C."""

    replay_bars: int | None = None
    """last bars to replay; default: all but the first"""
    speed: float | None = None
    """seconds from one bar to the next; default: a bar comes when somebody posts to /local/v1/advance, as
    paper_trade.py --url does"""
    bundle: Path | None = None
    """folder of a bundle whose costs, rules and cash the venue has; default: Alpaca's"""
    cash: float | None = None
    """dollars in the account; default: 100000, or the bundle's"""
    port: int = 0
    """port to serve on; 0 takes a free one"""
    key: str = "local"
    """key id that clients must give"""
    secret: str = "local"
    """its secret"""
    partial_fill_share: float = 0.1
    """share of the fills that come in two parts"""
    faults: str | None = None
    """faults and their rates, such as drop_reply=0.01,429=0.02,late_bar=0.05"""
    seed: int = 0
    """of faults and of fills in parts"""
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    if options.speed is not None and not options.speed > 0:
        raise InputError(f"--speed {options.speed}: accepted are seconds > 0")
    if options.cash is not None and not 0 < options.cash < math.inf:
        raise InputError(f"--cash {options.cash}: accepted are dollars > 0")
    rates = parse_options(options.faults)
    for kind, rate in rates.items():
        if isinstance(rate, (str, bool)):
            raise InputError(f"--faults {kind}={rate}: a rate from 0 to 1 is accepted")
    faults = FaultPlan(options.seed, rates)
    bundle = None if options.bundle is None else load_bundle(options.bundle)
    market = options.bars.market()
    count = market.n_bars - 1 if options.replay_bars is None else options.replay_bars
    if not 1 <= count < market.n_bars:
        raise InputError(f"--replay-bars {count}: accepted are 1 to {market.n_bars - 1}")
    start, stop = market.n_bars - 1 - count, market.n_bars
    changed = {} if options.cash is None else {"initial_cash": options.cash}
    env = default_env(market)(market, 1, **changed) if bundle is None else bundle.env(market, (start, stop), **changed)
    venue = LocalAlpaca(
        env, start, stop, options.key, options.secret, options.partial_fill_share, options.seed, faults, options.port
    )
    with Interrupt("closing the venue, press Ctrl-C again to stop at once") as interrupt, venue:
        _tell(venue, options)
        due = time.monotonic()
        more = True
        while not interrupt.requested:
            if more and options.speed is not None and time.monotonic() >= due + options.speed:
                due += options.speed
                venue.advance()
                more = venue.more
                if not more:
                    print("the bars have ended; the venue still answers, Ctrl-C ends it", flush=True)
            time.sleep(0.05 if options.speed is None else min(0.05, options.speed / 4))
    print(f"equity {venue.equity:.2f} after {venue.bar - start} bars and {len(venue.orders)} orders")
    return 0


def _tell(venue: LocalAlpaca, options: Options) -> None:
    market = venue.venue.market
    path = "/v1beta3/crypto/us" if market.asset_class == "crypto" else "/v2/iex"
    pace = "POST /local/v1/advance plays the next" if options.speed is None else f"one every {options.speed:g} s"
    lines = (
        f"bars:     {market.description}, {', '.join(venue.venue.names.wire)}, {market.timeframe}; {pace}",
        f"trading:  {venue.url}",
        f"data:     {venue.url}",
        f"updates:  {venue.stream_url}/stream",
        f"bars as they close: {venue.stream_url}{path}",
        f"alpaca-py: TradingClient({options.key!r}, <secret>, url_override={venue.url!r})",
    )
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    run(Options, main)
