"""A trader with its venue: the local one that replays bars in lock step, or Alpaca's for paper accounts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drl_agents.deployment.account_lock import sole_trader
from drl_agents.deployment.bundle import EARLIER, Bundle
from drl_agents.deployment.journal import Journal
from drl_agents.deployment.trader import Hook, PaperTrader
from environments.data.credentials import Secret
from environments.errors import InputError
from environments.features import MEMORY
from environments.frictions import Frictions
from environments.live.alpaca_broker import AlpacaBroker
from environments.live.alpaca_history import BarHistory
from environments.live.alpaca_session import paper_url
from environments.live.alpaca_stream import BarStream
from environments.live.feed import LiveFeed, ReplayFeed
from environments.live.risk import RiskLimits
from environments.live.schedule import Schedule
from environments.timeframe import Timeframe

Keys = tuple[Secret, Secret]
PAPER = "https://paper-api.alpaca.markets"  # where no other URL is given


@contextmanager
def replaying(
    bundle: Bundle, url: str, keys: Keys, folder: str | Path, name: str, *, pause: float = 0.0, fresh: bool = False,
    limits: RiskLimits | None = None, hook: Hook | None = None, **broker_options: Any,
) -> Iterator[PaperTrader]:  # fmt: skip
    """A trader in lock step with a local venue at `url` (see `alpaca_local`).

    pause: seconds between bars. fresh: begin a new journal; else an interrupted one is gone on with.
    """
    url = paper_url(url)
    broker, history = _wired(bundle, keys, url, lock_step=True, name="local", **broker_options)
    feed = ReplayFeed(history, url, _bars_needed(bundle), pause)
    with _journal(bundle, folder, fresh, broker.name) as journal, sole_trader(url or PAPER, keys[0].reveal(), folder):
        yield PaperTrader(
            bundle, broker, folder, name, feed=feed, journal=journal, limits=limits or RiskLimits(), hook=hook
        )


@contextmanager
def paper_trading(
    bundle: Bundle, keys: Keys, folder: str | Path, name: str, *, url: str | None = None,
    stream_url: str | None = None, stock_feed: str = "iex", fresh: bool = False, limits: RiskLimits | None = None,
    hook: Hook | None = None,
) -> Iterator[PaperTrader]:  # fmt: skip
    """A trader on Alpaca's paper venue, on bars as they close.

    url: another venue's that speaks the protocol, for trading and data alike. stream_url: of its websocket of bars,
    None where it has none.

    Raises:
        InputError: the model trades what this venue has not: fills at the close, further columns, long stock bars.
    """
    market = bundle.manifest["market"]
    if bundle.manifest["env"]["options"]["fill_at"] != "open":
        raise InputError(
            f"bundle {bundle.id[:12]} fills at the close of the bar after its decision: live, an order fills when "
            "it is sent; train with fill_at=open"
        )
    url, timeframe = paper_url(url), Timeframe.parse(market["timeframe"])
    schedule = Schedule(market["asset_class"], timeframe)
    broker, history = _wired(bundle, keys, url, stock_feed=stock_feed)
    if url is None and (others := [name for name in history.wire if "/" in name and not name.endswith("/USD")]):
        raise InputError(
            f"{', '.join(others)}: Alpaca settles these in coins, and the model's books are in dollars; train on "
            f"{', '.join(name.split('/')[0] + '/USD' for name in others)}"
        )
    # The websocket sends minutes; longer bars are asked for when they have closed.
    stream = None
    if timeframe.minutes == 1 and (url is None or stream_url is not None):
        stream = BarStream(history.wire, market["asset_class"], keys, stock_feed, stream_url)
    feed = LiveFeed(history, schedule, _bars_needed(bundle), broker.now, None if stream is None else stream.get)
    with _journal(bundle, folder, fresh, broker.name) as journal, sole_trader(url or PAPER, keys[0].reveal(), folder):
        try:
            yield PaperTrader(
                bundle, broker, folder, name, feed=feed, journal=journal, limits=limits or RiskLimits(), hook=hook,
                clock=broker, schedule=schedule,
            )  # fmt: skip
        finally:
            if stream is not None:
                stream.close()


def _wired(
    bundle: Bundle, keys: Keys, url: str | None, stock_feed: str = "iex", **options: Any
) -> tuple[AlpacaBroker, BarHistory]:
    market, own = bundle.manifest["market"], {**EARLIER, **bundle.manifest["env"]["options"]}
    if market["extra"]:
        raise InputError(
            f"bundle {bundle.id[:12]} reads {', '.join(market['extra'])}, which Alpaca's bars do not have: "
            "train without --extra-columns"
        )
    symbols, asset_class = market["symbols"], market["asset_class"]
    costs = Frictions(commission_bps=own["commission_bps"], fee_in=own["fee_in"])
    broker = AlpacaBroker(
        symbols, asset_class, keys, url=url, commission_bps=costs.commission_bps, fee_in=costs.fee_in, **options
    )
    timeframe = Timeframe.parse(market["timeframe"])
    sleep = {"sleep": options["sleep"]} if "sleep" in options else {}
    return broker, BarHistory(symbols, asset_class, timeframe, keys, url=url, stock_feed=stock_feed, **sleep)


def _bars_needed(bundle: Bundle) -> int:
    """Bars of history after which every row of the lookback is as training saw it."""
    return MEMORY + bundle.manifest["env"]["options"]["lookback"]


@contextmanager
def _journal(bundle: Bundle, folder: str | Path, fresh: bool, venue: str) -> Iterator[Journal]:
    market = bundle.manifest["market"]
    facts = {name: market[name] for name in ("symbols", "timeframe", "asset_class")} | {"venue": venue}
    journal = Journal(folder, facts, fresh)
    try:
        yield journal
    finally:
        journal.close()
