"""Train one agent without a study: on a market, or on any environment build_env knows (--env gym:CartPole-v1)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from drl_agents.agents.ppo import PPOConfig
from drl_agents.training.commandline import DataOptions, OutputOptions, parse_options, run, terminal
from drl_agents.training.device import MemoryOptions
from drl_agents.training.interrupt import Interrupt
from drl_agents.training.train_job import TrainSettings, run_training
from drl_agents.training.trainer import Budget, TrainingDiverged
from environments.alpaca_env import default_env
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Give one of --timesteps, --episodes, --iterations; the default is 100,000 timesteps."""

    env: str | None = None
    """environment: a built-in name, an installed one, gym:ID, or package.module:Class; default: by asset class"""
    env_options: str | None = None
    """options of the environment, such as lookback=4,participation=0.05,margin=2,shorting=true,borrow_bps=300"""
    n_envs: int | None = None
    """environments side by side; default: the checkpoint's, what fits the memory budget if one is given, else 12"""
    n_steps: int | None = None
    """steps of each environment per rollout, the same as --horizon-len"""
    batch_size: int | None = None
    """samples of a minibatch, in place of --num-minibatches; must divide n_envs * n_steps"""
    clock_groups: int | None = None
    """clocks the environments share: those of a group live through the same bars, and what depends on the market alone
    is computed once for them; default: a clock each"""
    timesteps: int | None = None
    """environment steps, all environments together"""
    episodes: int | None = None
    """ended episodes"""
    iterations: int | None = None
    """rollouts with their update"""
    hidden: tuple[int, ...] = (128, 128)
    """units of the hidden layers"""
    normalizer: str = "standard"
    """of market features: standard (mean and deviation) or quantile (normal scores)"""
    seed: int = 0
    """seed of everything random"""
    run: str = "train"
    """name of the run: its files go to <logs>/runs/<run>"""
    resume: bool = False
    """go on from the run's newest sound checkpoint: checkpoint.pt or model_interrupted_*.pt"""
    checkpoint: Path | None = None
    """go on from this checkpoint; the run's others are kept as *.old"""
    fresh: bool = False
    """begin anew where there is a run already; its files are kept as *.old"""
    checkpoint_every: int = 50
    """iterations between checkpoints"""
    logs: Path = Path("logs")
    """folder everything is written under"""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    agent: PPOConfig = field(default_factory=PPOConfig)
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def ppo(self) -> PPOConfig:
        if self.n_steps is None:
            return self.agent
        if self.agent.horizon_len not in (PPOConfig.horizon_len, self.n_steps):
            raise InputError(
                f"--n-steps {self.n_steps} and --horizon-len {self.agent.horizon_len} say the same: give one of them"
            )
        return replace(self.agent, horizon_len=self.n_steps)

    def environment(self) -> dict[str, str | int | float | bool]:
        found = parse_options(self.env_options)
        if self.clock_groups is None:
            return found
        if "clock_groups" in found:
            raise InputError("clock_groups is in --env-options already: give it once")
        return {**found, "clock_groups": self.clock_groups}


def main(options: Options) -> int:
    given = {"timesteps": options.timesteps, "episodes": options.episodes, "iterations": options.iterations}
    budget = Budget(**given) if any(v is not None for v in given.values()) else Budget(timesteps=100_000)
    for name in ("n_envs", "n_steps", "clock_groups"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    plain_env = options.env is not None and options.env.startswith("gym:")
    market = None if plain_env else options.bars.market()
    settings = TrainSettings(
        env=options.env or default_env(market).__name__,
        n_envs=options.n_envs,
        budget=budget,
        folder=options.logs / "runs" / options.run,
        seed=options.seed,
        agent=options.ppo(),
        network={"hidden": options.hidden, "normalizer": options.normalizer},
        env_options=options.environment(),
        batch_size=options.batch_size,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        checkpoint=options.checkpoint,
        fresh=options.fresh,
        memory=options.memory,
    )
    try:
        with Interrupt("finishing the current iteration, press Ctrl-C again to stop at once") as interrupt:
            done = run_training(market, settings, lambda: interrupt.requested, terminal(options.output))
    except TrainingDiverged as error:
        print(f"error: training diverged: {error}; try a lower --learning-rate or --max-grad-norm", file=sys.stderr)
        return 1
    result = done.result
    if not result.timesteps and not result.interrupted:
        print(f"nothing left to do: {result.iterations} iterations are done; a larger budget goes on with them")
    else:
        print(
            f"{result.iterations} iterations, {result.timesteps} steps in {result.seconds:.1f} s "
            f"({result.steps_per_second:.0f} steps/s)"
        )
    if result.figures:
        print("  ".join(f"{name} {values[0]:.4g}" for name, values in result.figures.items()))
    print(done.memory)
    print(f"checkpoint: {result.checkpoint}")
    if result.interrupted:
        print("interrupted: --resume goes on from here")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    run(Options, main)
