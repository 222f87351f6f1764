"""Where episodes begin and end: bars drawn from segments, never across a seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from environments.errors import InputError

Range = tuple[int, int]
Segments = Sequence[Range] | Sequence[Sequence[Range]]

# Uniform draws are made in blocks of this many steps: one call of the generator instead of one each step.
_BLOCK = 128


def per_member(segments: Segments, n_members: int) -> list[list[Range]]:
    """One list of segments per member, whether one list was given for all or one for each."""
    if segments and (not segments[0] or isinstance(segments[0][0], Sequence)):
        own = [list(cast("Sequence[Range]", member)) for member in segments]
        if len(own) != n_members:
            raise InputError(f"segments for {len(own)} members given, n_members={n_members}")
        return own
    return [list(cast("Sequence[Range]", segments)) for _ in range(n_members)]


def check_within(member_segments: Sequence[Sequence[Range]], market_segments: Sequence[Range]) -> None:
    """Raises InputError for a segment that is not inside one of the market's: a walk may not cross a pause."""
    for start, stop in (segment for own in member_segments for segment in own):
        if not any(first <= start < stop <= last for first, last in market_segments):
            shown = ", ".join(map(str, market_segments[:5])) + (", ..." if len(market_segments) > 5 else "")
            raise InputError(f"segment ({start}, {stop}): accepted are ranges inside one of the market's, {shown}")


class EpisodeStarts:
    """Draws (start bar, stop bar) for N environments of P members.

    Every bar of a member's segments at which something can be decided, with room for at least one step, and,
    where the segment allows it, for a whole episode, is equally likely.

    Args:
        member_segments: the segments of each member.
        decidable: (B,) bool, some asset can be judged at the bar.
        lookback: bars an observation reads: the earliest start has that many bars behind it.
        random_start: False: environment j walks segment j modulo their number from its first decidable bar.
        seed: one for all members (member p then uses seed + p), or one per member.
        share: environments in succession that begin together, at the same bar.
    """

    def __init__(
        self,
        member_segments: Sequence[Sequence[Range]],
        decidable: Tensor,
        n_envs: int,
        lookback: int,
        episode_length: int | None,
        random_start: bool,
        seed: int | Sequence[int],
        device: torch.device,
        share: int = 1,
    ) -> None:
        self.random_start, self.device, self.share = random_start, device, share
        self.per_member = n_envs // len(member_segments) // share
        can = decidable.cpu().numpy()
        longest = max((b - a for own in member_segments for a, b in own), default=0)
        if lookback > longest:
            raise InputError(f"lookback={lookback} is longer than the longest segment, {longest} bars")
        tables = [
            [_starts(segment, can, lookback, episode_length if random_start else None) for segment in own]
            for own in member_segments
        ]
        for own, table in zip(member_segments, tables, strict=True):
            if not any(len(starts) for starts in table) or (not random_start and not all(len(s) for s in table)):
                longest = max((b - a for a, b in own), default=0)
                raise InputError(
                    f"no episode fits: the longest of {len(own)} segments has {longest} bars, and {lookback} bars of "
                    f"lookback, indicator warm-up and 2 bars to trade are needed; take a shorter lookback or more bars"
                )
        if random_start:
            starts = [np.concatenate(table) for table in tables]
            stops = [
                np.concatenate([np.full(len(s), seg[1]) for s, seg in zip(table, own, strict=True)])
                for own, table in zip(member_segments, tables, strict=True)
            ]
        else:
            starts = [np.array([s[0] for s in table]) for table in tables]
            stops = [np.array([seg[1] for seg in own]) for own in member_segments]
        counts = np.array([len(s) for s in starts])
        offsets = np.cumsum(counts) - counts
        self.starts = torch.as_tensor(np.concatenate(starts)).to(device)
        self.stops = torch.as_tensor(np.concatenate(stops)).to(device)
        self.count = torch.as_tensor(counts).repeat_interleave(self.per_member).to(device)
        self.offset = torch.as_tensor(offsets).repeat_interleave(self.per_member).to(device)
        # Position in the member's table of walks, where starts are not random.
        walk = self.offset + torch.arange(self.per_member, device=device).repeat(len(counts)) % self.count
        self.first, self.last = self.starts[walk], self.stops[walk]
        # On a GPU they draw there: what is drawn on the host has to cross to it, and waits for it.
        own = device if device.type == "cuda" else torch.device("cpu")
        self.generators = [torch.Generator(own) for _ in member_segments]
        self.reseed(seed)

    def reseed(self, seed: int | Sequence[int]) -> None:
        """Start the random numbers anew."""
        seeds = [seed + p for p in range(len(self.generators))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(self.generators):
            raise InputError(f"{len(seeds)} seeds given for {len(self.generators)} members")
        for generator, own in zip(self.generators, seeds, strict=True):
            generator.manual_seed(own)
        self._refill()

    def _refill(self) -> None:
        # Per member: the same starts beside any other members.
        blocks = [torch.rand(_BLOCK, self.per_member, generator=g, device=g.device) for g in self.generators]
        self.uniform = torch.cat(blocks, dim=1).to(self.device)
        self.cursor = 0

    def uniforms(self, steps: int) -> Tensor:
        """(steps, N / share) uniform draws in [0, 1), one row for each `place`."""
        rows = []
        while steps:
            if self.cursor == _BLOCK:
                self._refill()
            taken = min(steps, _BLOCK - self.cursor)
            rows.append(self.uniform[self.cursor : self.cursor + taken])
            self.cursor, steps = self.cursor + taken, steps - taken
        return torch.cat(rows)

    def place(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(start, stop), each (N,) int64, for draws (N / share,); stop is one past the last bar of the segment."""
        if self.random_start:
            index = torch.minimum((uniform * self.count).long(), self.count - 1) + self.offset
            found = self.starts.index_select(0, index), self.stops.index_select(0, index)
        else:
            found = self.first, self.last
        return tuple(x.unsqueeze(1).expand(-1, self.share).flatten() for x in found)

    def state_dict(self) -> dict[str, Any]:
        states = torch.stack([g.get_state() for g in self.generators])
        return {"uniform": self.uniform.clone(), "cursor": self.cursor, "generators": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.uniform.copy_(state["uniform"])
        self.cursor = int(state["cursor"])
        for generator, own in zip(self.generators, state["generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view


def _starts(segment: Range, decidable: np.ndarray, lookback: int, episode_length: int | None) -> np.ndarray:
    """The bars of a segment an episode may start at, rising."""
    first, last = max(segment[0], lookback - 1), segment[1] - 2
    bars = np.arange(first, last + 1)
    bars = bars[decidable[first : last + 1]] if bars.size else bars
    if episode_length is not None and bars.size:
        whole = bars[bars <= segment[1] - 1 - episode_length]
        # A segment shorter than an episode is still of use: its first bar, walked to its end.
        bars = whole if whole.size else bars[:1]
    return bars
