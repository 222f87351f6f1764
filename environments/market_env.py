"""MarketVecEnv: N accounts trading one market, stepped together.

One step, from bar t to bar t+1:

    the agent has seen bars up to the close of t; its action becomes orders (quantities)
    orders decided decision_lag - 1 steps ago fill in bar t+1, at its open (or close, `fill_at`)
    a margin account pays for what it owes at the close of t+1, where it has too little left all is closed there
    equity is marked at the close of t+1, the reward is the increment from the close of t
    the episode is terminated by ruin or a forced close, truncated where its length or its segment ends

The market's tensors are shared; what is private to an environment is allocated once, in the constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from environments.actions import build_scheme
from environments.bar_table import BarRow, bar_table, holder_table
from environments.episodes import EpisodeStarts, Segments, check_within, per_member
from environments.errors import InputError
from environments.features import compute_features
from environments.frictions import Frictions, slippage_table
from environments.margin import MarginTerms
from environments.market import Market
from environments.observation import Observation, account_size, account_vector
from environments.portfolio import Account, close_bar, equity, match, open_account, settle
from environments.rewards import Outcome, Reward, parse_reward, reward_scale
from environments.rules import RuleBook
from environments.vec_env import Step, VecEnv

PerMember = float | Sequence[float | None]


class MarketVecEnv(VecEnv):
    """N environments over one market.

    Args:
        market: the bars, on the device everything runs on.
        n_envs: N >= 1, all members together.
        segments: half-open bar ranges episodes may walk; one list for all, or one list per member. Default: the
            market's own segments. Where starts are random, each must lie inside one of the market's.
        n_members: P, learners that share the environments equally; N is a multiple of P.
        lookback: bars an observation shows, 1..256.
        action: name of the action scheme; `max_trade`, `sharpness`, `threshold`: options of the built-in ones,
            `action_options`: of any, by name (see `environments.actions`).
        reward: a reward term, or several with their weights (see `environments.rewards`). Returns in it are divided by
            the standard deviation of the equal-weight one-bar return over the member's segments, so that learners meet
            rewards of order one in any market. One text, or one per member: the same terms with weights of their own.
        episode_length: bars after which an episode is truncated; None: at the end of its segment.
        initial_cash: currency an episode begins with.
        ruin: the share of the initial cash at or under which an episode is terminated.
        decision_lag: bars from the decision to the fill, >= 1.
        fill_at: "open" or "close" of the filling bar.
        commission_bps, spread_bps, slippage_bps, impact_coef, impact_reference, participation, fee_in: see `Frictions`;
            None takes the venue's. The coefficients: one for all, or one per member.
        slippage_seed: seed of the slippage draws.
        margin, shorting, borrow_bps, margin_rate_bps, maintenance_margin, maintenance_margin_short, bars_per_year: of
            stocks, see `MarginTerms`; None takes its defaults, a cash account, and the market's bars per year. What is
            borrowed in a bar is charged at its close and counts among its fees.
        rules: asset rules: a `RuleBook`, or overrides by symbol (`RuleBook.from_dict`); None takes the venue's.
        features: names of the features; None takes all.
        random_start: episodes start at random bars; else environment j of a member walks the member's segment
            j (modulo their number) from its first bar, every time.
        clock_groups: G, clocks of each member: N / (P * G) environments in succession live through the same bars, so
            what depends on the market alone is computed for G bars a step; None: every environment has its own clock.
            An environment whose episode is terminated begins the next one at the bar its clock has come to.
        seed: one seed, or one per member.

    Raises:
        InputError: an argument out of range, a lookback no segment can hold.
    """

    pure = True

    def __init__(
        self,
        market: Market,
        n_envs: int,
        *,
        segments: Segments | None = None,
        n_members: int = 1,
        lookback: int = 1,
        action: str = "trades",
        max_trade: float | None = None,
        sharpness: float | None = None,
        threshold: float | None = None,
        action_options: Mapping[str, Any] | None = None,
        reward: str | Sequence[str] = "excess",
        episode_length: int | None = 1_000,
        initial_cash: float = 100_000.0,
        ruin: float = 0.1,
        decision_lag: int = 1,
        fill_at: str = "open",
        commission_bps: PerMember | None = None,
        spread_bps: PerMember | None = None,
        slippage_bps: PerMember | None = None,
        impact_coef: PerMember | None = None,
        impact_reference: str | None = None,
        participation: float | None = None,
        fee_in: str | None = None,
        slippage_seed: int = 0,
        margin: float | None = None,
        shorting: bool | None = None,
        borrow_bps: float | None = None,
        margin_rate_bps: float | None = None,
        maintenance_margin: float | None = None,
        maintenance_margin_short: float | None = None,
        bars_per_year: float | None = None,
        rules: RuleBook | Mapping[str, Mapping[str, Any]] | None = None,
        features: Sequence[str] | None = None,
        random_start: bool = True,
        clock_groups: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> None:
        _check(n_envs >= 1, f"n_envs={n_envs}: at least 1 is needed")
        _check(n_envs % n_members == 0, f"n_envs={n_envs} is not a multiple of n_members={n_members}")
        _check(1 <= lookback <= 256, f"lookback={lookback}: accepted are 1 to 256 bars")
        _check(decision_lag >= 1, f"decision_lag={decision_lag}: at least 1, no order fills in a bar its decision saw")
        _check(fill_at in ("open", "close"), f"fill_at={fill_at!r}: accepted are open, close")
        _check(episode_length is None or episode_length >= 1, f"episode_length={episode_length}: at least 1 bar")
        _check(initial_cash > 0 and 0 <= ruin < 1, f"initial_cash={initial_cash} > 0, 0 <= ruin={ruin} < 1 are needed")
        clocks = n_envs // n_members if clock_groups is None else clock_groups
        _check(
            clocks >= 1 and n_envs // n_members % clocks == 0,
            f"clock_groups={clock_groups}: a member's {n_envs // n_members} environments cannot be shared out",
        )
        self.envs_per_clock = n_envs // n_members // clocks
        self.market, self.n_envs, self.n_members, self.lookback = market, n_envs, n_members, lookback
        self.device = market.device
        self.decision_lag, self.fill_at, self.initial_cash, self.ruin = decision_lag, fill_at, initial_cash, ruin
        own = _given(max_trade=max_trade, sharpness=sharpness, threshold=threshold)
        self.scheme = build_scheme(action, **{**(action_options or {}), **own})
        members = n_envs // n_members, market.dtype, market.device
        rewards = [own["reward"] for own in _member_options(n_members, reward=reward)]
        # Where members differ no reward has this name: it cannot be taken for that of one of them.
        self.reward_name = rewards[0] if len(set(rewards)) == 1 else " | ".join(rewards)
        self._reward = Reward.each_members([parse_reward(text) for text in rewards], *members)
        self.episode_length = episode_length
        costs = _member_options(
            n_members, commission_bps=commission_bps, spread_bps=spread_bps, slippage_bps=slippage_bps,
            impact_coef=impact_coef, impact_reference=impact_reference, participation=participation, fee_in=fee_in,
        )  # fmt: skip
        self.frictions = Frictions.each_members(
            [Frictions.for_venue(market.asset_class, **own) for own in costs], *members
        )
        self.slippage_seed = slippage_seed
        self.margin = MarginTerms(
            bars_per_year=market.bars_per_year if bars_per_year is None else bars_per_year,
            **_given(
                margin=margin, shorting=shorting, borrow_bps=borrow_bps, margin_rate_bps=margin_rate_bps,
                maintenance_margin=maintenance_margin, maintenance_margin_short=maintenance_margin_short,
            ),
        )  # fmt: skip
        self.margin.check_venue(market.asset_class, self.frictions.fee_in)
        self.rule_book = rules if isinstance(rules, RuleBook) else RuleBook.from_dict(market.asset_class, rules or {})
        self.rules = self.rule_book.tensors(
            market.symbols, self.device, market.dtype, self.margin, self.frictions.fee_in
        )
        self.features = compute_features(market, None if features is None else tuple(features))
        self.rows = self.features.rows
        self.state_size = account_size(market.n_assets)
        size = lookback * self.rows.shape[1] + self.state_size
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.single_action_space = self.scheme.space(market.n_assets)

        judged = self.features.ready & market.close.isfinite()
        self._bars = bar_table(market, judged, fill_at, self._slip(), self.frictions.reads_volume)
        key = ("equal-weight holder", self.features.names, initial_cash)
        self._holder = market.once(key, lambda: holder_table(market, judged, initial_cash))
        # What can be judged depends on the features alone.
        key = ("action table", self.scheme, self.features.names)
        self._action_table = market.once(key, lambda: self.scheme.table(market, judged))
        self.member_segments = per_member(market.segments() if segments is None else segments, n_members)
        if random_start:  # a walk is an account that lives through pauses; an episode never spans one
            check_within(self.member_segments, market.segments())
        self.starts = EpisodeStarts(
            self.member_segments, judged.any(1), n_envs, lookback, episode_length, random_start, seed, self.device,
            self.envs_per_clock,
        )  # fmt: skip
        self.reward_scale = reward_scale(market, self.member_segments).repeat_interleave(n_envs // n_members)
        self._allocate()
        self.reset()

    def _slip(self) -> Tensor | None:
        return slippage_table(self.market, self.slippage_seed) if self.frictions.has_slippage else None

    def _allocate(self) -> None:
        n, a, device, dtype = self.n_envs, self.market.n_assets, self.device, self.market.dtype
        self.account = open_account(torch.full((n,), self.initial_cash, dtype=dtype, device=device), a)
        self.equity = torch.full((n,), self.initial_cash, dtype=dtype, device=device)
        self.last_equity = self.equity.clone()
        self.last_shares = torch.zeros_like(self.account.shares)
        self.holder_units = torch.zeros_like(self.account.shares)
        self.holder_value = torch.empty(n, dtype=dtype, device=device)
        self.pending = torch.zeros(self.decision_lag - 1, n, a, dtype=dtype, device=device)
        self.bar = torch.zeros(n, dtype=torch.int64, device=device)
        self.stop = torch.zeros(n, dtype=torch.int64, device=device)
        self.elapsed = torch.zeros(n, dtype=torch.int64, device=device)
        self.fees = torch.zeros(n, dtype=dtype, device=device)
        self.traded_value = torch.zeros_like(self.account.shares)
        self.reward_memory = {
            name: torch.full((n, *shape), first, dtype=dtype, device=device)
            for name, (shape, first) in self._reward.memory.items()
        }
        self._state = torch.zeros(n, self.state_size, device=device)
        self._first_state = torch.zeros(1, self.state_size, device=device)
        self._first_state[:, 0] = 1.0  # all in cash, nothing held, nothing traded

    # ------------------------------------------------------------------------------------------ stepping

    def reset(self, seed: int | None = None) -> Observation:
        if seed is not None:
            self.starts.reseed(seed)
        everywhere = torch.ones(self.n_envs, dtype=torch.bool, device=self.device)
        self._begin(everywhere, *self.starts.place(self.starts.uniforms(1)[0]), torch.zeros_like(self.elapsed))
        self.last_equity.fill_(self.initial_cash)
        for record in (self.last_shares, self.fees, self.traded_value):
            record.zero_()
        self._state.copy_(self._first_state.expand_as(self._state))
        return Observation(self.bar, self._state)

    def step(self, action: Tensor) -> Step:
        with torch.no_grad():
            return self.advance(action, self.draws(1)[0])

    def draws(self, steps: int) -> Tensor:
        # Drawn whether or not an episode ends: looking first would make the host wait for the device.
        return self.starts.uniforms(steps)

    def advance(self, action: Tensor, draw: Tensor) -> Step:
        """One step; where an episode ends, the next one starts where `draw` (N / envs_per_clock,) says."""
        now, after = self.bar_row(self.bar), self.bar_row(self.bar + 1)
        orders = self.scheme.orders(
            action, self.account, self.equity, now.mark, now.judged, self.rules, self.action_row(self.bar)
        )
        pending = self.pending
        if self.decision_lag > 1:
            orders, pending = pending[0].clone(), torch.cat([pending[1:], orders.unsqueeze(0)])
        fills = match(
            self.account, orders, after.price, after.fillable, self.rules, self.frictions, after.slip, after.volume
        )
        account = settle(self.account, fills, self.margin)
        traded, fees = fills.value, fills.fees.sum(-1)
        if self.margin.cash_account:
            marked, forced = equity(account, after.mark), None
        else:
            account, close = close_bar(account, after.mark, self.margin, self.frictions, after.slip, after.volume)
            marked, forced = close.equity, close.forced
            traded, fees = traded + close.fills.value, fees + close.costs
        held = (self.holder_units * after.mark).sum(-1)
        outcome = Outcome(self.equity, marked, self.holder_value, held, traded, account.shares, after.mark)
        remembered = list(self.reward_memory.values())
        reward, memory = self._reward(outcome, remembered, self.reward_scale)

        if torch.is_grad_enabled():
            # Into other buffers than those that were read: a graph needs what it read as it was.
            self.account = Account(*(x.clone() for x in account))
            self.reward_memory = {name: x.clone() for name, x in zip(self.reward_memory, memory, strict=True)}
            self.equity, self.pending, self._state = marked.clone(), pending.clone(), torch.empty_like(self._state)
        else:
            torch._foreach_copy_([*self.account, *remembered], [*account, *memory])
            self.equity.copy_(marked)
            if self.decision_lag > 1:
                self.pending.copy_(pending)
        self.last_equity.copy_(marked.detach())  # of the step itself: `equity` starts anew where an episode ends
        self.last_shares.copy_(account.shares.detach())
        self.holder_value.copy_(held)
        self.fees.copy_(fees.detach())
        self.traded_value.copy_(traded.detach())
        self.bar.add_(1)
        self.elapsed.add_(1)
        terminated = marked <= self.ruin * self.initial_cash
        if forced is not None:
            terminated = terminated | forced
        truncated = self.bar >= self.stop - 1
        if self.episode_length is not None:
            truncated = truncated | (self.elapsed >= self.episode_length)
        clock_ended, truncated = truncated, truncated & ~terminated
        final = Observation(self.bar.clone(), account_vector(account, after.mark, marked))
        done = terminated | truncated
        start, stop = self.starts.place(draw)
        elapsed = torch.zeros_like(self.elapsed)
        if self.envs_per_clock > 1:
            # One that is terminated while the others of its clock go on begins anew among them.
            start, stop, elapsed = (
                torch.where(clock_ended, fresh, own)
                for fresh, own in ((start, self.bar), (stop, self.stop), (elapsed, self.elapsed))
            )
        self._begin(done, start, stop, elapsed)
        self._state.copy_(torch.where(done.unsqueeze(-1), self._first_state, final.state))
        return Step(Observation(self.bar, self._state), reward.float(), terminated, truncated, final)

    def why_no_gradient(self) -> str | None:
        return self.scheme.why_no_gradient()

    def detach(self) -> None:
        self.account = Account(*(x.detach() for x in self.account))
        self.reward_memory = {name: x.detach() for name, x in self.reward_memory.items()}
        self.equity, self.pending, self._state = (x.detach() for x in (self.equity, self.pending, self._state))

    def _begin(self, done: Tensor, start: Tensor, stop: Tensor, elapsed: Tensor) -> None:
        """Start a new episode where `done`; nowhere else anything changes."""
        self.bar.copy_(torch.where(done, start, self.bar))
        self.stop.copy_(torch.where(done, stop, self.stop))
        self.elapsed.copy_(torch.where(done, elapsed, self.elapsed))
        wide = done.unsqueeze(-1)
        self.account.cash.masked_fill_(done, self.initial_cash)
        for holding in self.account[1:]:
            holding.masked_fill_(wide, 0)
        self.pending.masked_fill_(wide, 0)
        for name, (shape, first) in self._reward.memory.items():
            self.reward_memory[name].masked_fill_(wide if shape else done, first)
        self.equity.masked_fill_(done, self.initial_cash)
        units = self._holder.index_select(0, self.bar)
        self.holder_units.copy_(torch.where(wide, units, self.holder_units))
        self.holder_value.masked_fill_(done, self.initial_cash)

    def bar_row(self, bar: Tensor) -> BarRow:
        """The columns of the bars (N,), see `BarRow`."""
        packed = self._bars.index_select(0, bar)
        frictions = self.frictions
        return BarRow(packed, self.market.n_assets, frictions.has_slippage, frictions.reads_volume)

    def action_row(self, bar: Tensor) -> Tensor | None:
        """(N, ...) what the action scheme worked out of the market up to each of the bars (N,), if it does."""
        return None if self._action_table is None else self._action_table.index_select(0, bar)

    # --------------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        buffers = {name: getattr(self, name).clone() for name in _BUFFERS}
        account = {f"account.{name}": value.clone() for name, value in self.account._asdict().items()}
        account |= {f"reward.{name}": value.clone() for name, value in self.reward_memory.items()}
        return {**buffers, **account, "state": self._state.clone(), "starts": self.starts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _BUFFERS:
            getattr(self, name).copy_(state[name])
        for name, value in self.account._asdict().items():
            value.copy_(state[f"account.{name}"])
        for name, value in self.reward_memory.items():
            value.copy_(state[f"reward.{name}"])
        self._state.copy_(state["state"])
        self.starts.load_state_dict(state["starts"])

    def training_rows(self) -> list[Tensor]:
        """The market rows of each member's own segments, (n_p, R) each."""
        return [torch.cat([self.rows[a:b] for a, b in own]) for own in self.member_segments]

    def normalizer_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the market rows over each member's own segments: (P, R) each."""
        stats = [_moments(rows) for rows in self.training_rows()]
        return torch.stack([m for m, _ in stats]), torch.stack([s for _, s in stats])


_BUFFERS = (
    "equity", "holder_units", "holder_value", "pending", "bar", "stop", "elapsed", "fees", "traded_value",
)  # fmt: skip


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    known = rows.isfinite()
    count = known.sum(0).clamp(min=1)
    filled = torch.where(known, rows, 0.0).double() if rows.device.type != "mps" else torch.where(known, rows, 0.0)
    mean = filled.sum(0) / count
    spread = (torch.where(known, filled - mean, 0.0).square().sum(0) / count).sqrt()
    # A feature that never moved says nothing: divided by one it stays near zero instead of blowing up.
    return mean.float(), torch.where(spread > 1e-8, spread, 1.0).float()


def _member_options(n_members: int, **options: Any) -> list[dict[str, Any]]:
    """What each member is given of options that are one value for all, or one per member; None is left out."""
    each: dict[str, list[Any]] = {}
    for name, value in options.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        each[name] = list(value) if several else [value] * n_members
        if len(each[name]) != n_members:
            raise InputError(f"{name}: {len(value)} values for {n_members} members; accepted are one, or one for each")
    return [_given(**{name: values[p] for name, values in each.items()}) for p in range(n_members)]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
