"""Historical bars of Alpaca: crypto without keys, US stocks with keys; paged, patient, resumable, kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from alpaca.common.exceptions import APIError
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient

from environments.data.alpaca_plan import Plan, api_timeframe, make_plan
from environments.data.credentials import Secret, alpaca_keys, redact
from environments.data.exchange import NO_CALENDAR, US_STOCKS
from environments.data.extend import HistoryChanged, extend, fetch_from
from environments.data.files import bars_from_frame
from environments.data.http import PatientSession, require_https
from environments.data.pages import PageCache, Row, kept, write_record
from environments.data.quality import check_bars
from environments.data.source import BarRequest, BarSet, SourceUnavailable
from environments.data.store import save_dataset
from environments.data.tidy import COLUMNS, tidy
from environments.errors import InputError

PAGE_LIMIT = 10_000  # the most bars one answer holds
URL_VARIABLE = "APCA_API_DATA_URL"
CACHE = Path("data") / "alpaca"
DAY = pd.Timedelta(days=1)
EXCHANGE_TIME = "America/New_York"
SESSION = (9 * 60 + 30, 16 * 60)  # minutes of the exchange's day

logger = logging.getLogger(__name__)


class AlpacaSource:
    """Bars from Alpaca's market data API, kept as a dataset folder.

    Symbols with a slash (BTC/USD) are crypto, for which no keys are needed; the others are US stocks. Needed
    are symbols, timeframe and start; the end is the last midnight UTC by which every bar was complete for 15
    minutes, or an earlier one asked for. `path` is the dataset's folder, by default one under data/alpaca
    named after the request. A dataset there that answers the request is given without asking Alpaca; one that only
    ends earlier is added to; an interrupted download is gone on with, unless prices are adjusted and it was begun on
    another day. Where prices are adjusted nothing is added: a split since would change all of them.

    Options, for stocks: feed ("sip": all exchanges; "iex": one, a few per cent of the volume), adjustment
    ("all": for splits and dividends, "raw", "split", "dividend"), hours ("regular": the sessions of calendar XNYS,
    09:30 to 16:00 New York and shorter on half days; "all": also pre-market and after-hours). Regular bars of an hour
    or more are made of half-hour ones, counted from the session's open, as `resample_bars` does. Daily stock bars are
    labelled 00:00 UTC of their date.

    The base URL can be overridden with the variable APCA_API_DATA_URL.

    https://docs.alpaca.markets/reference/stockbars, https://docs.alpaca.markets/reference/cryptobars-1
    """

    name = "alpaca"
    on_progress: Callable[[str, float, int], None] | None = None
    """called after every page with the symbol, the fraction of its span that is there, and its bars so far"""

    def __init__(
        self,
        session: Callable[[], PatientSession] = lambda: PatientSession("Alpaca"),
        now: Callable[[], pd.Timestamp] = lambda: pd.Timestamp.now("UTC"),
    ) -> None:
        self._session, self._now = session, now

    def load(self, request: BarRequest) -> BarSet:
        """The bars asked for; pages that were fetched before are not fetched again.

        Raises:
            SourceUnavailable: no keys for stocks, refused keys, or no answer in spite of retries.
            InputError: a request that cannot be met, or a bad bar; see `quality.check_bars`.
        """
        now = self._now()
        plan = make_plan(request, now)
        whole = {"symbols": list(plan.symbols), **plan.asked()}
        folder = request.path or _default_folder(plan, whole)
        whole.pop("asked_end")
        found = kept(folder, whole, plan.end.isoformat())
        if found is not None and found[1] == plan.end.isoformat():
            return found[0]
        grown = None
        if found is not None and not plan.adjusted:
            try:
                grown = self._added(found[0], plan, folder, now)
            except HistoryChanged as error:
                logger.warning("alpaca: %s; all bars are fetched again", error)
        bars, end = grown or self._fetch(plan, folder, now)
        write_record(folder, whole, end.isoformat(), bars.fingerprint)
        save_dataset(bars, folder)
        PageCache.discard(folder)
        return bars

    def _added(self, before: BarSet, plan: Plan, folder: Path, now: pd.Timestamp) -> tuple[BarSet, pd.Timestamp]:
        """The bars of `before` and those up to the plan's end, of which only the last day of `before` is fetched
        again; and that end."""
        since = fetch_from(before)
        new, end = self._fetch(replace(plan, start=since), folder, now)
        return extend(before, new, since), end

    def _fetch(self, plan: Plan, folder: Path, now: pd.Timestamp) -> tuple[BarSet, pd.Timestamp]:
        """The plan's bars, and their end: an interrupted download is gone on with to the end it was begun with."""
        client, secrets = self._client(plan)
        cache = PageCache.open(folder, plan.asked(), plan.facts(now), keep=not plan.adjusted)
        plan = replace(plan, end=pd.Timestamp(cache.facts["end"]))
        with client._session:
            frames = [self._symbol(client, secrets, plan, symbol, cache) for symbol in plan.symbols]
        frame = pd.concat(frames, ignore_index=True)
        wanted = BarRequest(
            symbols=plan.symbols,
            timeframe=plan.timeframe,
            start=plan.start,
            end=plan.end,
            asset_class=plan.asset_class,
            calendar=None if plan.asset_class == "crypto" else US_STOCKS if plan.hours == "regular" else NO_CALENDAR,
        )
        stock = plan.asset_class == "stock"
        note = f", feed {plan.feed}, adjustment {plan.adjustment}, {plan.hours} hours" if stock else ""
        return bars_from_frame(frame, self.name, wanted, source=self.name, own=plan.fetched, note=note), plan.end

    def _client(self, plan: Plan) -> tuple[Any, tuple[Secret, ...]]:
        """alpaca-py's client of the asset class over our session, and the keys it carries."""
        keys = alpaca_keys(needed_for="stock data" if plan.asset_class == "stock" else None)
        url = os.environ.get(URL_VARIABLE) or None
        login = {} if keys is None else {"api_key": keys[0].reveal(), "secret_key": keys[1].reveal()}
        kind = StockHistoricalDataClient if plan.asset_class == "stock" else CryptoHistoricalDataClient
        client = kind(**login, raw_data=True, url_override=url and require_https(url, URL_VARIABLE))
        # alpaca-py 0.44 sets no timeout and waits three seconds whatever Retry-After says; there is no public
        # way to give it a session.
        client._session = self._session()
        return client, keys or ()

    def _symbol(
        self, client: Any, secrets: tuple[Secret, ...], plan: Plan, symbol: str, cache: PageCache
    ) -> pd.DataFrame:
        """The tidy rows of one symbol: pages kept before, then those that are missing."""
        rows: list[Row] = []
        number, token, complete = 0, None, False
        for bars, token in cache.pages(symbol):
            rows += bars
            number, complete = number + 1, token is None
        while not complete:
            bars, following = _page(client, secrets, plan, symbol, token)
            if following is not None and following == token:
                raise SourceUnavailable(f"Alpaca: the page after page {number} of {symbol} is that page again")
            cache.add(symbol, number, bars, following)
            rows += bars
            number, token, complete = number + 1, following, following is None
            self._report(plan, symbol, rows, complete)
        try:
            frame = _tidy_rows(rows, plan, symbol)
            check_bars(frame, self.name)
        except InputError:
            # Alpaca may have corrected them by the next time.
            cache.drop(symbol)
            raise
        return frame

    def _report(self, plan: Plan, symbol: str, rows: list[Row], complete: bool) -> None:
        if self.on_progress is not None:
            reached = (pd.Timestamp(rows[-1][0]) - plan.start) / (plan.end - plan.start) if rows else 0.0
            self.on_progress(symbol, 1.0 if complete else min(max(reached, 0.0), 1.0), len(rows))


def _page(
    client: Any, secrets: tuple[Secret, ...], plan: Plan, symbol: str, token: str | None
) -> tuple[list[Row], str | None]:
    """One answer of the bars endpoint: its bars and the token of the next page."""
    # The API's end is inclusive. A daily bar opens at midnight in New York, some hours after its label.
    daily_stock = plan.asset_class == "stock" and plan.fetched.minutes == 1_440
    last = plan.end + (DAY if daily_stock else pd.Timedelta(0)) - pd.Timedelta(seconds=1)
    query: dict[str, Any] = {
        "symbols": symbol,
        "timeframe": api_timeframe(plan.fetched),
        # From the day's beginning, so that a session is counted from its open.
        "start": plan.start.floor("D").strftime("%Y-%m-%dT%H:%M:%SZ"),
        "end": last.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "limit": PAGE_LIMIT,
        "sort": "asc",
        "page_token": token,
    }
    path = "/crypto/us/bars"
    if plan.asset_class == "stock":
        path = "/stocks/bars"
        query |= {"feed": plan.feed, "adjustment": plan.adjustment}
    try:
        answer = client.get(path, query)
        bars = (answer["bars"] or {}).get(symbol) or []
        return [[bar[key] for key in "tohlcv"] for bar in bars], answer.get("next_page_token") or None
    except APIError as error:
        status, reason = error.status_code, redact(str(error), secrets)[:160]
    except InputError:
        raise  # of the session; it is a ValueError too
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceUnavailable(f"Alpaca's answer for {symbol} is not a page of bars") from None
    if status in (401, 403):
        raise SourceUnavailable(
            f"Alpaca refused the request (HTTP {status}: {reason}): check APCA_API_KEY_ID and "
            "APCA_API_SECRET_KEY; the feed sip may need a subscription, iex does not"
        )
    if status in (400, 404, 422):
        raise InputError(f"Alpaca does not accept the request for {symbol} (HTTP {status}: {reason})")
    raise SourceUnavailable(f"Alpaca: HTTP {status}: {reason}")


def _tidy_rows(rows: list[Row], plan: Plan, symbol: str) -> pd.DataFrame:
    """Tidy rows of one symbol, of the hours asked for. Raises InputError when there are none."""
    span = f"{plan.start.date()} to {plan.end.date()}"
    if not rows:
        raise InputError(f"Alpaca has no {plan.timeframe} bars of {symbol} from {span}")
    names = [name for name in COLUMNS if name != "symbol"]
    frame = tidy(pd.DataFrame(rows, columns=names).assign(symbol=symbol)[list(COLUMNS)], "alpaca")
    if plan.asset_class == "crypto":
        return frame
    local = frame["timestamp"].dt.tz_convert(EXCHANGE_TIME)
    if plan.fetched.minutes == 1_440:
        return frame.assign(timestamp=local.dt.tz_localize(None).dt.normalize().dt.tz_localize("UTC"))
    if plan.hours == "regular":
        minute = local.dt.hour * 60 + local.dt.minute
        frame = frame[(minute >= SESSION[0]) & (minute < SESSION[1])].reset_index(drop=True)
        if frame.empty:
            raise InputError(f"Alpaca has no regular-hours bars of {symbol} from {span}")
    return frame


def _default_folder(plan: Plan, whole: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]
    return CACHE / f"{plan.asset_class}-{plan.timeframe}-{key}"
