"""Train one agent without a study: on a market, or on any environment build_env knows (--env gym:CartPole-v1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.agents.ppo import PPOConfig
from drl_agents.training.commandline import DataOptions, OutputOptions, parse_options, run, terminal
from drl_agents.training.interrupt import Interrupt
from drl_agents.training.train_job import CHECKPOINT, TrainSettings, run_training
from drl_agents.training.trainer import Budget
from environments.alpaca_env import default_env
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Give one of --timesteps, --episodes, --iterations; the default is 100,000 timesteps."""

    env: str | None = None
    """environment: a built-in name, an installed one, gym:ID, or package.module:Class; default: by asset class"""
    env_options: str | None = None
    """options of the environment, such as lookback=4,max_trade=0.5"""
    n_envs: int = 12
    """environments side by side"""
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
    """go on from the run's checkpoint"""
    checkpoint_every: int = 50
    """iterations between checkpoints"""
    logs: Path = Path("logs")
    """folder everything is written under"""
    agent: PPOConfig = field(default_factory=PPOConfig)
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    given = {"timesteps": options.timesteps, "episodes": options.episodes, "iterations": options.iterations}
    budget = Budget(**given) if any(v is not None for v in given.values()) else Budget(timesteps=100_000)
    if options.n_envs < 1:
        raise InputError(f"--n-envs {options.n_envs}: at least 1 is needed")
    plain_env = options.env is not None and options.env.startswith("gym:")
    market = None if plain_env else options.bars.market()
    settings = TrainSettings(
        env=options.env or default_env(market).__name__,
        n_envs=options.n_envs,
        budget=budget,
        folder=options.logs / "runs" / options.run,
        seed=options.seed,
        agent=options.agent,
        network={"hidden": options.hidden, "normalizer": options.normalizer},
        env_options=parse_options(options.env_options),
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
    )
    with Interrupt("finishing the current iteration, press Ctrl-C again to stop at once") as interrupt:
        _, result = run_training(market, settings, lambda: interrupt.requested, terminal(options.output))
    print(
        f"{result.iterations} iterations, {result.timesteps} steps in {result.seconds:.1f} s "
        f"({result.steps_per_second:.0f} steps/s)"
    )
    print("  ".join(f"{name} {values[0]:.4g}" for name, values in result.figures.items()))
    print(f"checkpoint: {settings.folder / CHECKPOINT}")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    run(Options, main)
