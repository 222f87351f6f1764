"""MarketView: what a live trader has seen of the market, as the features training saw.

Keeps the last `features.MEMORY` bars and computes the newest row from them with the same functions; so, too, what an
action scheme reads of the market.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from environments.actions import ActionScheme
from environments.errors import InputError
from environments.features import MEMORY, Bars, newest_features
from environments.live.broker import Bar


class MarketView:
    """Rows, marks and flags of the newest bar of A assets.

    Args:
        n_assets: A. features: names, as in training. extra: names of the bars' further columns.
        lookback: L, rows kept.
        dtype: of the marks and of the scheme's row. scheme: the action scheme that trades on the view.

    Attributes:
        mark: (1, A) last known closes, 0 before the first. timestamp: of the newest bar, None before the first.
    """

    def __init__(
        self,
        n_assets: int,
        features: Sequence[str],
        extra: Sequence[str],
        lookback: int,
        dtype: torch.dtype,
        scheme: ActionScheme | None = None,
    ) -> None:
        self.names, self.extra, self.lookback, self.dtype = tuple(features), tuple(extra), lookback, dtype
        # Twice the memory: the newest MEMORY bars are always one slice, and are moved to the front once it is full.
        self._bars = np.empty((n_assets, 5 + len(self.extra), 2 * MEMORY))
        self._counts = [0] * n_assets
        self._rows: deque[np.ndarray] = deque(maxlen=lookback)
        self._mark = np.zeros(n_assets)
        self.mark = torch.zeros(1, n_assets, dtype=dtype)
        self._judged = np.zeros(n_assets, dtype=bool)
        self._scheme = scheme if scheme is not None and scheme.n_factors else None
        self._factors = np.zeros((n_assets, 0 if self._scheme is None else self._scheme.n_factors))
        self.timestamp: int | None = None

    def replay(self, bars: Sequence[Bar]) -> None:
        """Take in history: only the rows the lookback needs are computed."""
        for i, bar in enumerate(bars):
            self.append(bar, compute=i >= len(bars) - self.lookback)

    def append(self, bar: Bar, compute: bool = True) -> None:
        """Take in a closed bar.

        Raises:
            InputError: it is not newer than the last one.
        """
        if self.timestamp is not None and bar.timestamp <= self.timestamp:
            raise InputError(f"bar {bar.timestamp} came after bar {self.timestamp}: bars must be in order")
        self.timestamp = bar.timestamp
        columns = np.column_stack([bar.open, bar.high, bar.low, bar.close, bar.volume, bar.extra])
        present = np.flatnonzero(np.isfinite(bar.close))
        histories = [self._remember(i, columns[i]) for i in present.tolist()]
        self._mark[present] = bar.close[present]
        self.mark = torch.tensor(self._mark, dtype=self.dtype).unsqueeze(0)
        row = np.full((len(self._counts), len(self.names)), np.nan, dtype=np.float32)
        self._factors.fill(np.nan)
        if compute and histories:
            row[present] = newest_features(histories, self.extra, self.names)
            if self._scheme is not None:
                for i, own in zip(present, histories, strict=True):
                    further = dict(zip(self.extra, own[5:], strict=True))
                    self._factors[i] = self._scheme.factors(Bars(*own[:5]), further)[-1]
        judged = np.isfinite(row).all(axis=1)
        row[~judged] = np.nan
        self._judged = judged
        if compute:
            self._rows.append(row.ravel())

    def _remember(self, asset: int, values: np.ndarray) -> np.ndarray:
        """Add a bar of one asset; returns its last bars, (5 + E, up to MEMORY)."""
        own, count = self._bars[asset], self._counts[asset]
        if count == 2 * MEMORY:
            own[:, : MEMORY - 1] = own[:, MEMORY + 1 :]
            count = MEMORY - 1
        own[:, count] = values
        self._counts[asset] = count + 1
        return own[:, max(0, count + 1 - MEMORY) : count + 1]

    @property
    def rows(self) -> Tensor:
        """(up to L, A * F) float32, oldest first."""
        return torch.from_numpy(np.stack(self._rows))

    @property
    def judged(self) -> Tensor:
        """(1, A) bool: the asset has a bar now, with all its features."""
        return torch.from_numpy(self._judged).unsqueeze(0)

    @property
    def action_row(self) -> Tensor | None:
        """(1, ...) the row of the scheme's table at the newest bar; None for a scheme without a table."""
        if self._scheme is None:
            return None
        return self._scheme.rows(torch.from_numpy(self._factors).unsqueeze(0), self.judged).to(self.dtype)
