"""Made-up markets with a known answer: the edge in them, if any, was planted and is recorded.

Every market is a path of log returns r[t] with close[t] = close[t-1] exp(r[t]) and open[t] = close[t-1], so
that an order decided at the close of bar t and filled at the open of bar t+1 captures the whole of r[t+1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from environments.data.source import ASSET_CLASSES, BarRequest, BarSet, make_bars
from environments.errors import InputError
from environments.timeframe import Timeframe

FIRST_PRICE = 100.0
MEDIAN_VOLUME = 1e6
VOLUME_SIGMA = 0.5
SESSION_MINUTES = 390  # 09:30 to 16:00 in New York
SESSION_OPEN = np.timedelta64(14 * 60 + 30, "m")  # UTC, winter time all year
MINUTES_PER_YEAR = 365.25 * 24 * 60
SESSIONS_PER_YEAR = 252

COMMON: dict[str, Any] = {
    "n_bars": 5_000,
    "n_assets": 1,
    "sigma": 0.01,
    "drift": 0.0,
    "start": "2020-01-01",
    "timeframe": "1h",
    "asset_class": "crypto",
}
KINDS: dict[str, dict[str, Any]] = {
    "gbm": {"correlation": 0.5},
    "regimes": {"drift": 0.5, "correlation": 0.5, "stay": 0.99, "turbulence": 2.0},
    "momentum": {"phi": 0.2},
    "signal": {"rho": 0.9, "ic": 0.2},
}


@dataclass(frozen=True)
class Simulation:
    """returns: (B, A) log returns; signal: (B, A) or None; facts: what to record beyond the options."""

    returns: np.ndarray
    signal: np.ndarray | None
    facts: dict[str, Any]


class SyntheticSource:
    """Seeded synthetic bars of symbols SYN0, SYN1, ...

    Options of every kind: `kind` (gbm, regimes, momentum, signal), `n_bars`, `n_assets`, `sigma` (standard
    deviation of a log return, per bar), `drift` (per year), `start`, `timeframe`, `asset_class` ("crypto":
    round the clock; "stock": weekdays, and 6.5-hour sessions when intraday). gbm: `correlation`; regimes:
    `correlation`, `stay`, `turbulence`; momentum: `phi`; signal: `rho`, `ic`. The functions below give each
    kind's formula. The request's own timeframe, start and asset_class count as those options.

    `planted` holds the options used and, for momentum and signal, `optimal_log_return_per_bar`: what the best
    costless policy earns on average that holds one asset entirely or not at all, knowing that asset's edge.
    """

    name = "synthetic"

    def load(self, request: BarRequest) -> BarSet:
        """The market asked for; the same seed and options always give the same one.

        Raises:
            InputError: an unknown kind or option, one out of range, or a symbol that is not made.
        """
        request.accept_only(self.name, "options", "symbols", "timeframe", "start", "asset_class")
        kind, options = _options(request)
        timeframe: Timeframe = options["timeframe"]
        n_bars, n_assets = options["n_bars"], options["n_assets"]
        clock, bars_per_year = _clock(options["start"], n_bars, timeframe, options["asset_class"])
        rng = np.random.default_rng(request.seed)
        simulation = MAKERS[kind](rng, options, options["drift"] / bars_per_year)
        columns = _bars(rng, simulation.returns, options["sigma"])
        if simulation.signal is not None:
            columns["signal"] = simulation.signal

        made = [f"SYN{i}" for i in range(n_assets)]
        symbols = request.symbols or tuple(made)
        if unknown := [name for name in symbols if name not in made]:
            raise InputError(
                f"source synthetic makes no {', '.join(unknown)}: with n_assets={n_assets} it makes "
                f"{made[0]} to {made[-1]}"
            )
        frame = pd.DataFrame(
            {
                "timestamp": pd.DatetimeIndex(np.tile(clock, n_assets), tz="UTC"),
                "symbol": np.repeat(made, n_bars),
                **{name: values.T.ravel() for name, values in columns.items()},
            }
        )
        if len(symbols) < n_assets:
            frame = frame[frame["symbol"].isin(symbols)].reset_index(drop=True)
        recorded = {name: str(v) if name in ("start", "timeframe") else v for name, v in options.items()}
        return make_bars(
            frame,
            source=self.name,
            origin=kind,
            timeframe=timeframe,
            asset_class=options["asset_class"],
            symbols=symbols,
            note=f", seed {request.seed}",
            synthetic=True,
            planted={"kind": kind, "seed": request.seed, **recorded, **simulation.facts},
        )


def gbm(rng: np.random.Generator, options: Mapping[str, Any], drift: float) -> Simulation:
    """Correlated geometric Brownian motion: r[t] = (drift - sigma^2/2) + sigma z[t].

    z is standard normal with the same `correlation` between any two assets; `drift` is the growth rate of the
    expected price, here per bar. No edge: returns are independent of everything before them.
    """
    returns = drift - options["sigma"] ** 2 / 2 + options["sigma"] * _correlated(rng, options)
    return Simulation(returns, None, {})


def regimes(rng: np.random.Generator, options: Mapping[str, Any], drift: float) -> Simulation:
    """Two-state Markov switching, one state for all assets.

    Calm: r = drift + sigma z. Turbulent: r = -drift + turbulence sigma z. The state stays the same for
    another bar with probability `stay`; both states are equally likely at the start and in the long run.
    """
    shape = (options["n_bars"], options["n_assets"])
    switches = rng.random(shape[0]) >= options["stay"]
    state = ((rng.integers(2) + np.cumsum(switches)) % 2)[:, None]
    spread = options["sigma"] * np.where(state == 1, options["turbulence"], 1.0)
    returns = np.where(state == 1, -drift, drift) + spread * _correlated(rng, options)
    return Simulation(returns, None, {"turbulent_share": float(state.mean())})


def momentum(rng: np.random.Generator, options: Mapping[str, Any], drift: float) -> Simulation:
    """Autocorrelated returns: r[t+1] = phi r[t] + sqrt(1 - phi^2) sigma eps, around `drift`; std(r) = sigma.

    Given r[t] the next return has mean mu = drift + phi (r[t] - drift), so mu ~ N(drift, (phi sigma)^2).
    Holding exactly when mu > 0 earns E[max(mu, 0)] per bar, which without drift is
    |phi| sigma / sqrt(2 pi). That is exact for all-or-nothing positions; fractional ones change the log
    return by terms of order sigma^2.
    """
    shape = (options["n_bars"], options["n_assets"])
    returns = drift + options["sigma"] * ar1(rng, shape, options["phi"])
    best = expected_positive_part(drift, abs(options["phi"]) * options["sigma"])
    return Simulation(returns, None, {"optimal_log_return_per_bar": best})


def signal(rng: np.random.Generator, options: Mapping[str, Any], drift: float) -> Simulation:
    """A visible signal that leads returns: r[t+1] = drift + sigma (ic s[t] + sqrt(1 - ic^2) eps).

    s is an AR(1) process of unit variance and coefficient `rho`, independent for every asset and emitted as
    the extra column "signal"; `ic`, the information coefficient, is its correlation with the next return.
    Given s[t] the next return has mean mu = drift + sigma ic s[t], so mu ~ N(drift, (sigma ic)^2). Holding
    exactly when mu > 0 earns E[max(mu, 0)] per bar, which without drift is sigma |ic| / sqrt(2 pi). That is
    exact for all-or-nothing positions; fractional ones change the log return by terms of order sigma^2.
    """
    sigma, ic = options["sigma"], options["ic"]
    shape = (options["n_bars"], options["n_assets"])
    visible = ar1(rng, shape, options["rho"])
    noise = rng.standard_normal(shape)
    returns = drift + sigma * noise
    returns[1:] = drift + sigma * (ic * visible[:-1] + math.sqrt(1 - ic**2) * noise[1:])
    best = expected_positive_part(drift, abs(ic) * sigma)
    return Simulation(returns, visible, {"optimal_log_return_per_bar": best})


MAKERS: dict[str, Callable[[np.random.Generator, Mapping[str, Any], float], Simulation]] = {
    "gbm": gbm,
    "regimes": regimes,
    "momentum": momentum,
    "signal": signal,
}


def ar1(rng: np.random.Generator, shape: tuple[int, int], coefficient: float) -> np.ndarray:
    """(B, A) stationary AR(1) of unit variance: x[t+1] = c x[t] + sqrt(1 - c^2) eps, x[0] ~ N(0, 1)."""
    x = rng.standard_normal(shape)
    x[1:] *= math.sqrt(1 - coefficient**2)
    for t in range(1, shape[0]):
        x[t] += coefficient * x[t - 1]
    return x


def expected_positive_part(mean: float, std: float) -> float:
    """E[max(X, 0)] for X ~ N(m, s^2): s phi(m/s) + m Phi(m/s), which is s / sqrt(2 pi) when m is 0."""
    if std == 0:
        return max(mean, 0.0)
    z = mean / std
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return std * density + mean * (1 + math.erf(z / math.sqrt(2))) / 2


def _correlated(rng: np.random.Generator, options: Mapping[str, Any]) -> np.ndarray:
    """(B, A) standard normals, equally correlated across assets: sqrt(c) common + sqrt(1 - c) own."""
    c = options["correlation"]
    common = rng.standard_normal((options["n_bars"], 1))
    return math.sqrt(c) * common + math.sqrt(1 - c) * rng.standard_normal((options["n_bars"], options["n_assets"]))


def _bars(rng: np.random.Generator, returns: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    """(B, A) open, high, low, close and volume around a path; overflow is left to the bar checks."""
    with np.errstate(over="ignore"):
        close = FIRST_PRICE * np.exp(np.cumsum(returns, axis=0))
    open_ = np.vstack([np.full((1, close.shape[1]), FIRST_PRICE), close[:-1]])
    above, below = (np.exp(sigma / 2 * np.abs(rng.standard_normal(close.shape))) for _ in range(2))
    return {
        "open": open_,
        "high": np.maximum(open_, close) * above,
        "low": np.minimum(open_, close) / below,
        "close": close,
        "volume": MEDIAN_VOLUME * np.exp(VOLUME_SIGMA * rng.standard_normal(close.shape)),
    }


def _clock(start: pd.Timestamp, n_bars: int, timeframe: Timeframe, asset_class: str) -> tuple[np.ndarray, float]:
    """(B,) datetime64[ns] bar open times, and how many bars a year has."""
    if asset_class == "crypto":
        steps = np.arange(n_bars, dtype=np.int64) * timeframe.nanoseconds
        return start.to_datetime64() + steps.astype("timedelta64[ns]"), MINUTES_PER_YEAR / timeframe.minutes
    daily = timeframe == Timeframe.parse("1d")
    if not daily and timeframe.minutes > SESSION_MINUTES:
        raise InputError(f"timeframe {timeframe}: synthetic stocks have bars of up to {SESSION_MINUTES} minutes or 1d")
    per_session = 1 if daily else SESSION_MINUTES // timeframe.minutes
    first = start.to_datetime64().astype("datetime64[D]")
    session, bar = np.divmod(np.arange(n_bars), per_session)
    dates = np.busday_offset(first, session, roll="forward").astype("datetime64[ns]")
    if not daily:
        dates = dates + SESSION_OPEN + (bar * timeframe.nanoseconds).astype("timedelta64[ns]")
    return dates, float(SESSIONS_PER_YEAR * per_session)


def _options(request: BarRequest) -> tuple[str, dict[str, Any]]:
    """The kind and its options, defaults filled in, each checked."""
    given = dict(request.options)
    kind = given.pop("kind", "gbm")
    if kind not in KINDS:
        raise InputError(f"synthetic kind {kind!r}: accepted are {', '.join(KINDS)}")
    options = {**COMMON, **KINDS[kind]}
    if unknown := sorted(set(given) - set(options)):
        raise InputError(f"synthetic kind {kind} has no option {', '.join(unknown)}: accepted are {', '.join(options)}")
    for name in ("timeframe", "start", "asset_class"):
        asked = getattr(request, name)
        if asked is not None:
            if name in given:
                raise InputError(f"{name} was given twice: in the request and in the options of source synthetic")
            given[name] = asked
    options.update(given)
    dates = BarRequest(**{name: options[name] for name in ("timeframe", "start", "asset_class")})
    if dates.asset_class is None or dates.start is None or dates.timeframe is None:
        raise InputError(f"synthetic timeframe, start and asset_class ({' or '.join(ASSET_CLASSES)}) cannot be None")
    options.update(timeframe=dates.timeframe, start=dates.start, asset_class=dates.asset_class)
    for name, least in (("n_bars", 2), ("n_assets", 1)):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"synthetic {name}={value!r}: a whole number of at least {least} is accepted")
    for name, (accepts, text) in RANGES.items():
        if name in options:
            value = options[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not accepts(value):
                raise InputError(f"synthetic {name}={value!r}: {text} is accepted")
            options[name] = float(value)
    return kind, options


RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "sigma": (lambda v: 0 < v < 1, "a number above 0 and below 1, per bar,"),
    "drift": (math.isfinite, "a finite number, per year,"),
    "correlation": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "stay": (lambda v: 0 <= v < 1, "a probability below 1"),
    "turbulence": (lambda v: 0 < v < 100, "a multiple of sigma above 0 and below 100"),
    "phi": (lambda v: -1 < v < 1, "a number between -1 and 1"),
    "rho": (lambda v: -1 < v < 1, "a number between -1 and 1"),
    "ic": (lambda v: -1 <= v <= 1, "a correlation from -1 to 1"),
}
