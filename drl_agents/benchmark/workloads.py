"""The workloads: which configurations run beside each other, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drl_agents.benchmark.work import Configuration
from environments.errors import InputError

BF16 = {"amp": "bf16"}
EAGER = {"compile": "off", "amp": "off"}
SCALE = (64, 256, 1_024, 4_096, 16_384, 65_536)
SHORTEST = 8  # steps of each environment where an iteration's samples would give fewer
GPU_HORIZON = 32
# What scripts/optimize.py makes a batch of for that many trials, folds and environments unless it is told.
OWN_TRIALS, OWN_FOLDS = 4, 5
FOLDS, TRIALS, TRIAL_ENVS, TRIAL_HORIZON, TRIAL_STEPS = 10, 20, 12, 128, 100_000


@dataclass(frozen=True)
class Target:
    """A figure that is asked for.

    kind: what is compared with `limit`:
        speed-up    steps/s of names[0] over names[1], round by round, the median; at least
        slow-down   the inverse of that; at most
        rate        steps/s of names[0]; at least
        rise        the highest rise of the cost per step over any earlier of `names`; at most
        growth      memory of names[0] over that of names[1]; at most
        by count    the slow-down over the ratio of their operations; at most
        busy        share of the time in which a kernel runs on the GPU; at least
    """

    text: str
    kind: str
    names: tuple[str, ...]
    limit: float

    @property
    def at_most(self) -> bool:
        return self.kind in ("slow-down", "rise", "growth", "by count")


@dataclass(frozen=True)
class Workload:
    """Configurations that are timed in turns, and what is asked of them. device: the only kind it is for, or None."""

    name: str
    configurations: tuple[Configuration, ...]
    targets: tuple[Target, ...] = ()
    device: str | None = None

    def restricted(self, only: Sequence[str], peers: bool) -> Workload:
        """Without the peers if `peers` is False, and with those of `only` alone, if any are named."""
        kept = [c for c in self.configurations if (peers or c.learner == "ours") and (not only or c.name in only)]
        names = {c.name for c in kept}
        targets = tuple(t for t in self.targets if set(t.names) <= names)
        return Workload(self.name, tuple(kept), targets, self.device)


def _clocked(groups: int) -> dict[str, int]:
    return {"clock_groups": groups}


_ITERATION = Workload(
    "iteration",
    (
        Configuration("ours 1", 1),
        Configuration("ours 12", 12),
        Configuration("ours 12 eager", 12, agent=EAGER),
        Configuration("ours 64", 64),
        Configuration("ours 64 eager", 64, agent=EAGER),
        Configuration("ours 64 bf16", 64, agent=BF16),
        Configuration("ours 2048", 2_048),
        Configuration("ours 2048 eager", 2_048, agent=EAGER),
        Configuration("ours 2048 bf16", 2_048, agent=BF16),
        Configuration("ours 2048 bf16 clock 64", 2_048, env=_clocked(64), agent=BF16),
        Configuration("sb3 1", 1, "sb3"),
        Configuration("sb3 12", 12, "sb3"),
        Configuration("sb3 64 batched", 64, "sb3", batched=True),
        Configuration("sb3 2048 batched", 2_048, "sb3", batched=True),
        Configuration("sbx 1", 1, "sbx"),
        Configuration("sbx 12", 12, "sbx"),
        Configuration("sbx 64 batched", 64, "sbx", batched=True),
        Configuration("sbx 2048 batched", 2_048, "sbx", batched=True),
    ),
    (
        Target("n_envs=12 over SB3", "speed-up", ("ours 12", "sb3 12"), 6.0),
        Target("n_envs=64 over SB3 batched", "speed-up", ("ours 64", "sb3 64 batched"), 2.5),
        Target("n_envs=64 bf16 over SB3 batched", "speed-up", ("ours 64 bf16", "sb3 64 batched"), 3.0),
        Target("n_envs=2048 over SB3 batched", "speed-up", ("ours 2048", "sb3 2048 batched"), 2.0),
        Target("n_envs=2048 bf16 over SB3 batched", "speed-up", ("ours 2048 bf16", "sb3 2048 batched"), 3.5),
        Target(
            "n_envs=2048 bf16, clock groups, over SB3 batched", "speed-up",
            ("ours 2048 bf16 clock 64", "sb3 2048 batched"), 4.0,
        ),
    ),
)  # fmt: skip

_PARTS = Workload(
    "parts",
    (
        Configuration("environment 1024", 1_024, part="environment"),
        Configuration("environment 1024 eager", 1_024, part="environment", agent=EAGER),
        *(
            Configuration(f"{part} {n}", n, part=part)
            for n in (64, 2_048)
            for part in ("environment", "rollout", "update", "iteration")
        ),
    ),
    (Target("environment alone at n_envs=1024, steps/s", "rate", ("environment 1024",), 1.5e6),),
)

_LOOKBACK = Workload(
    "lookback",
    (
        Configuration("lookback 1", 2_048, env=_clocked(64)),
        Configuration("lookback 64", 2_048, env={**_clocked(64), "lookback": 64}),
    ),
    (Target("lookback 64 against 1", "slow-down", ("lookback 64", "lookback 1"), 2.5),),
)

# The bars of a rollout, 64 clocks of 8 steps, are embedded when they are seen, once for the values, and in every epoch.
_TRANSFORMER = Workload(
    "transformer",
    (
        Configuration("MLP over 1 bar", 2_048, env=_clocked(64), counted=True),
        Configuration(
            "transformer over 64 bars", 2_048, env={**_clocked(64), "lookback": 64}, network={"network": "lightweight"},
            counted=True,
        ),
    ),
    (
        Target(
            "transformer over 64 bars against MLP over 1, by the count of operations", "by count",
            ("transformer over 64 bars", "MLP over 1 bar"), 1.5,
        ),
    ),
)  # fmt: skip

_SCALING = Workload(
    "scaling",
    tuple(Configuration(f"n_envs {n}", n, horizon_len=max(SHORTEST, 16_384 // n)) for n in SCALE),
    (
        Target("cost per step from 64 to 65,536", "rise", tuple(f"n_envs {n}" for n in SCALE), 1.3),
        # Four times the environments at the same horizon; a tenth for what does not depend on them.
        Target("memory at 65,536 over 16,384", "growth", ("n_envs 65536", "n_envs 16384"), 4.4),
    ),
)

# Every learner draws the same rollouts: a trial's, of 12 environments and 128 steps. A member of a population is a
# fold of a trial. Judging the folds is not timed.
_SEARCH = Workload(
    "search",
    (
        Configuration("one by one", TRIAL_ENVS, horizon_len=TRIAL_HORIZON),
        Configuration("10 folds at once", TRIAL_ENVS, n_members=FOLDS, horizon_len=TRIAL_HORIZON),
        Configuration("as optimize.py would", TRIAL_ENVS, n_members=OWN_TRIALS * OWN_FOLDS, horizon_len=TRIAL_HORIZON),
        Configuration("20 trials x 10 folds", TRIAL_ENVS, n_members=FOLDS * TRIALS, horizon_len=TRIAL_HORIZON),
        Configuration("sb3 one by one", TRIAL_ENVS, "sb3", horizon_len=TRIAL_HORIZON),
    ),
    (
        Target("trials/hour over our one by one", "speed-up", ("20 trials x 10 folds", "one by one"), 3.0),
        Target("as optimize.py would, over our one by one", "speed-up", ("as optimize.py would", "one by one"), 3.0),
        Target("as optimize.py would, over SB3's", "speed-up", ("as optimize.py would", "sb3 one by one"), 10.0),
        Target("trials/hour over SB3's", "speed-up", ("20 trials x 10 folds", "sb3 one by one"), 10.0),
    ),
)

_GPU_SIZES = (16_384, 65_536)
_GPU = Workload(
    "gpu",
    (
        *(Configuration(f"ours {n}", n, horizon_len=GPU_HORIZON) for n in _GPU_SIZES),
        *(Configuration(f"ours {n} bf16", n, horizon_len=GPU_HORIZON, agent=BF16) for n in _GPU_SIZES),
        Configuration("ours 65536 bf16 clock 64", 65_536, horizon_len=GPU_HORIZON, env=_clocked(64), agent=BF16),
        Configuration("environment 65536", 65_536, part="environment", horizon_len=GPU_HORIZON),
    ),
    (
        *(Target(f"n_envs={n}, steps/s", "rate", (f"ours {n}",), 20e6) for n in _GPU_SIZES),
        *(Target(f"n_envs={n} bf16, steps/s", "rate", (f"ours {n} bf16",), 20e6) for n in _GPU_SIZES),
        Target("environment alone, steps/s", "rate", ("environment 65536",), 200e6),
        Target("GPU busy at n_envs=65536 bf16", "busy", ("ours 65536 bf16",), 0.9),
    ),
    device="cuda",
)

_ALL = (_ITERATION, _PARTS, _LOOKBACK, _TRANSFORMER, _SCALING, _SEARCH, _GPU)
WORKLOADS: Mapping[str, Workload] = {w.name: w for w in _ALL}


def trials_per_hour(steps_per_second: float) -> float:
    """Trials of 10 folds with 100,000 training steps each that fit into an hour at that rate."""
    return steps_per_second * 3_600 / (FOLDS * TRIAL_STEPS)


def find_workload(name: str) -> Workload:
    """The workload `name`.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    if name not in WORKLOADS:
        raise InputError(f"workload {name!r}: accepted are {', '.join((*WORKLOADS, 'learning'))}")
    return WORKLOADS[name]
