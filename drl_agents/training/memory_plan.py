"""The sizes of a run that fit a memory budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

from drl_agents.training.device import size_text
from drl_agents.training.memory import Footprint, Sizes
from environments.errors import InputError

HEADROOM = 1.1  # a prediction may be off by a tenth, and the budget must hold
MAX_ENVS = 2**16
MIN_ITERATIONS = 10  # fewer updates than this are no training, whatever fits
MIN_HORIZON, MIN_BATCH = 16, 256


@dataclass(frozen=True)
class Plan:
    """The sizes that were chosen. predicted: bytes at the peak; reason: one line, what was chosen and why."""

    sizes: Sizes
    predicted: float
    reason: str


def plan_sizes(
    footprint: Footprint,
    start: Sizes,
    free: frozenset[str],
    budget: tuple[float, str],
    max_samples: int | None = None,
    batch_size: int | None = None,
    reduced: str | None = None,
) -> Plan:
    """The most environments (a power of two on each clock) whose run fits the budget, a tenth kept back.

    Where not even the fewest fit: smaller minibatches, then the reduced precision, then a shorter rollout.

    Args:
        start: the sizes as given or by default.
        free: the names among n_envs, horizon_len, num_minibatches, amp that may be changed.
        budget: (bytes, where they come from), of `device.MemoryOptions.budget`.
        max_samples: N * T to stay within, so that a budget of steps makes `MIN_ITERATIONS` iterations.
        batch_size: samples of a minibatch; the number of minibatches then follows from the rest.
        reduced: a precision that takes less memory, where the device has one.

    Raises:
        InputError: nothing fits; names the least and the budget.
    """
    limit, source = budget
    unit = footprint.clock_groups or 1
    counts = [start.n_envs]
    if "n_envs" in free:
        counts = [unit * 2**k for k in range(MAX_ENVS.bit_length()) if unit * 2**k <= MAX_ENVS][::-1] or [unit]
    horizons = [start.horizon_len]
    while "horizon_len" in free and horizons[-1] // 2 >= MIN_HORIZON:
        horizons.append(horizons[-1] // 2)
    parts = [1, 2, 4, 8, 16, 32, 64] if "num_minibatches" in free and batch_size is None else [1]
    precisions = [start.amp, *([reduced] if reduced and "amp" in free and start.amp == "off" else [])]
    least: tuple[float, Sizes] | None = None
    for horizon in horizons:
        for amp in precisions:
            for part in parts:
                for n_envs in counts:
                    groups = footprint.clock_groups or n_envs
                    if "n_envs" in free and max_samples and n_envs > unit and n_envs * horizon > max_samples:
                        continue
                    most = footprint.most_minibatches(Sizes(n_envs, horizon, 1))
                    number = start.num_minibatches * part
                    if batch_size is not None:
                        if n_envs * horizon % batch_size or batch_size % (n_envs // groups):
                            continue
                        number = n_envs * horizon // batch_size
                    elif "num_minibatches" in free and part == 1:
                        number = max(1, min(number, most))
                    sizes = Sizes(n_envs, horizon, number, amp)
                    # Fewer samples than this train nothing: the next choice gives up more than it saves.
                    if (part > 1 and sizes.batch_size < MIN_BATCH) or number > most:
                        continue
                    found = footprint.peak(sizes)
                    if least is None or found < least[0]:
                        least = found, sizes
                    if found * HEADROOM <= limit:
                        return Plan(sizes, found, _reason(footprint, sizes, found, free, limit, source, max_samples))
    if least is None:
        most = footprint.most_minibatches(replace(start, n_envs=counts[0]))
        raise InputError(
            f"--batch-size {batch_size}: no number of environments that may be planned makes n_envs * n_steps "
            f"(n_steps {start.horizon_len}) a multiple of it"
            if batch_size is not None
            else f"num_minibatches={start.num_minibatches}: what may be planned (n_envs {counts[0]}, n_steps "
            f"{start.horizon_len}) makes {most} at most"
        )
    raise InputError(
        f"memory: the least that could be planned takes {size_text(least[0])} and a tenth in reserve "
        f"(n_envs {least[1].n_envs}, n_steps {least[1].horizon_len}), the budget is {size_text(limit)} ({source})"
    )


def _reason(
    footprint: Footprint, sizes: Sizes, found: float, free: frozenset[str], limit: float, source: str, most: int | None
) -> str:
    why = "n_envs is not planned"
    if "n_envs" in free:
        twice = replace(sizes, n_envs=2 * sizes.n_envs)
        if twice.n_envs > MAX_ENVS:
            why = f"more than {MAX_ENVS} environments are not planned"
        elif most is not None and twice.samples > most:
            why = f"with more the steps would make fewer than {MIN_ITERATIONS} iterations"
        else:
            why = f"twice the environments would take {size_text(footprint.peak(twice))}"
    precision = {"off": "float32"}.get(sizes.amp, sizes.amp)
    return (
        f"planned n_envs {sizes.n_envs}, n_steps {sizes.horizon_len}, batch size {sizes.batch_size:.0f}, {precision}: "
        f"{size_text(found)} of {size_text(limit)} ({source}); {why}"
    )
