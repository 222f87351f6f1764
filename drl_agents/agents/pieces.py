"""Large minibatches fall into pieces, over which a CPU sums the gradient."""

from __future__ import annotations

PIECE = 4_096  # samples whose activations fit the caches of a CPU


def pieces(slots: int, each: int) -> int:
    """Into how many pieces a minibatch of `slots` of `each` samples falls: where it pays, the fewest equal ones of at
    most `PIECE` samples."""
    if slots * each <= 2 * PIECE:
        return 1
    least = -(-slots * each // PIECE)
    return next((k for k in range(least, 2 * least) if slots % k == 0), least)
