"""Shadow: what a challenger would have done on the bars a trader sees, in books of its own.

The books are the environment's (`environments.portfolio`), with the costs the model was trained with; slippage, which
training draws at random, is taken at its mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from drl_agents.deployment.bundle import EARLIER, Bundle
from drl_agents.deployment.decider import Decider
from environments.frictions import Frictions
from environments.live.broker import Bar, Order
from environments.portfolio import close_bar, equity, match, open_account, settle
from environments.timeframe import Timeframe

MEAN_SLIP = 0.5  # of a draw from Uniform[0, 1)
FRICTIONS = tuple(Frictions.__dataclass_fields__)


class Shadow:
    """One challenger, beginning in cash at the newest bar of `history`, where it decides for the first time.

    Attributes:
        curve: its equity at that bar's close and after every bar since, currency. ended: its account was closed by
        force. timeframe: nanoseconds of a bar.
    """

    def __init__(self, bundle: Bundle, history: Sequence[Bar], cash: float) -> None:
        self.bundle, self.decider = bundle, Decider(bundle)
        market = bundle.manifest["market"]
        options = {**EARLIER, **bundle.manifest["env"]["options"]}
        own = {name: options[name] for name in FRICTIONS if options.get(name) is not None}
        self.frictions = Frictions.for_venue(market["asset_class"], **own)
        self.timeframe = Timeframe.parse(market["timeframe"]).nanoseconds
        self.decider.see(history)
        self.account = open_account(torch.tensor([cash], dtype=torch.float64), len(market["symbols"]))
        self.curve, self.ended = [cash], False
        self._held_back: deque[list[Order]] = deque()
        self._decide()

    @property
    def timestamp(self) -> int:
        """Of the newest bar it has seen, UTC nanoseconds."""
        return self.decider.view.timestamp

    @property
    def bars(self) -> int:
        """How many it has traded."""
        return len(self.curve) - 1

    @property
    def returns(self) -> np.ndarray:
        """(bars,) simple returns."""
        curve = np.array(self.curve)
        return curve[1:] / curve[:-1] - 1

    def see(self, bar: Bar) -> None:
        """Fill what was decided, mark the account at the close, decide."""
        if self.ended:
            self.curve.append(self.curve[-1])
            return
        view = self.decider.view
        view.append(bar)
        quote, volume = (torch.from_numpy(x).unsqueeze(0) for x in (self.decider.fill_price(bar), bar.volume))
        fillable = (volume > 0) & quote.isfinite()
        price = torch.where(fillable, quote, view.mark)
        slip, volume = torch.full_like(price, MEAN_SLIP), torch.nan_to_num(volume)
        # Orders of `lag` bars ago: those decided at the last bar where it is one.
        due = self._held_back.popleft() if len(self._held_back) >= self.decider.lag else []
        wanted = torch.zeros_like(self.account.shares)
        for order in due:
            i = self.decider.symbols.index(order.symbol)
            wanted[0, i] = order.quantity if order.side == "buy" else -order.quantity
        margin = self.decider.margin
        fills = match(self.account, wanted, price, fillable, self.decider.rules, self.frictions, slip, volume)
        self.account = settle(self.account, fills, margin)
        if not margin.cash_account:
            self.account, close = close_bar(self.account, view.mark, margin, self.frictions, slip, volume)
            self.ended = bool(close.forced)
        self.curve.append(float(equity(self.account, view.mark)))
        if not self.ended:
            self._decide()

    def _decide(self) -> None:
        self._held_back.append(self.decider.orders(self.account))
