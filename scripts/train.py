"""Train one agent without a study: on a market, or on any environment build_env knows (--env gym:CartPole-v1)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from drl_agents.agents.ppo import PPOConfig
from drl_agents.agents.registry import find_agent
from drl_agents.deployment.gate import GateLimits
from drl_agents.deployment.run_job import Judgement, hold_out, judge_run
from drl_agents.evaluation.score_table import score_table
from drl_agents.training.commandline import DataOptions, OutputOptions, check_name, parse_options, run, terminal
from drl_agents.training.config_file import given, with_config
from drl_agents.training.device import MemoryOptions
from drl_agents.training.interrupt import Interrupt
from drl_agents.training.network_flags import NetworkOptions
from drl_agents.training.train_job import TrainSettings, run_training
from drl_agents.training.trainer import Budget, TrainingDiverged
from environments.alpaca_env import default_env
from environments.data.download import EXPANDED
from environments.errors import InputError
from environments.market_env import MarketVecEnv
from environments.plugin import find_env

SIZES = ("horizon_len", "num_minibatches", "amp")
TEST_RUN = {"n_envs": 4, "iterations": 2}


@dataclass(frozen=True)
class Options:
    """Give one of --timesteps, --episodes, --iterations; the default is 100,000 timesteps. Every flag may stand in a
    YAML file instead (--config); the flag goes before the file."""

    config: Path | None = None
    """YAML file of options, named as the flags are"""
    agent: str = "ppo"
    """ppo, a2c, shac, sac, td3, ddpg, dqn, an installed one, or package.module:Class"""
    env: str | None = None
    """environment: a built-in name, an installed one, gym:ID, or package.module:Class; default: by asset class"""
    env_options: str | None = None
    """options of the environment, such as lookback=4,participation=0.05,margin=2,shorting=true,borrow_bps=300"""
    expanded: bool = False
    """the expanded set: twelve US stocks and funds, with cash as the account's own, from Alpaca"""
    cache_path: Path | None = None
    """folder that downloaded bars are kept in; default: one of their own under data/"""
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
    test_run: bool = False
    """try everything once, in less than a minute: 4 environments, 2 iterations"""
    test_days: int | None = None
    """last days with bars, kept from training and judged on; default: 60, at most a fifth of the bars; 0: none"""
    preprocessing: bool = True
    """normalise market features by the training bars"""
    skip_posterior: bool = False
    """leave out the bootstrap of the held-out days"""
    deploy: bool = False
    """make the model its market's champion if it passes the gate"""
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
    network: NetworkOptions = field(default_factory=NetworkOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    hyper: PPOConfig = field(default_factory=PPOConfig)
    limits: GateLimits = field(default_factory=GateLimits)
    given: Any = field(init=False, default=frozenset())  # sizes that the command line or the file names
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def hyperparameters(self) -> Any:
        hyper, kind = self.hyper, type(self.hyper)
        if self.test_run and getattr(hyper, "learning_starts", None) == getattr(kind, "learning_starts", 0):
            hyper = replace(hyper, learning_starts=1)  # two iterations are to try learning too
        if self.n_steps is None:
            return hyper
        named = "horizon_len" in self.given or hyper.horizon_len != kind.horizon_len
        if named and hyper.horizon_len != self.n_steps:
            raise InputError(
                f"--n-steps {self.n_steps} and --horizon-len {hyper.horizon_len} say the same: give one of them"
            )
        return replace(hyper, horizon_len=self.n_steps)

    def environment(self) -> dict[str, str | int | float | bool]:
        found = parse_options(self.env_options)
        if self.clock_groups is None:
            return found
        if "clock_groups" in found:
            raise InputError("clock_groups is in --env-options already: give it once")
        return {**found, "clock_groups": self.clock_groups}

    def data(self) -> DataOptions:
        bars = self.bars
        if self.expanded:
            if bars.symbols is not None:
                raise InputError("--expanded names symbols of its own: give it without --symbols")
            source = bars.data_source or ("alpaca" if bars.data is None and bars.data_dir is None else None)
            if source == "alpaca" and bars.start is None:
                raise InputError("--expanded downloads from Alpaca: give --start, a first day such as 2016-01-04")
            bars = replace(bars, symbols=",".join(EXPANDED), data_source=source, timeframe=bars.timeframe or "1d")
        if self.cache_path is not None:
            if bars.data_source != "alpaca" or bars.data is not None:
                raise InputError("--cache-path is for bars that are downloaded: --data-source alpaca, without --data")
            bars = replace(bars, data=self.cache_path)
        return bars

    def check_no_market(self) -> None:
        """Raises InputError naming the options that say something of bars, of which an environment gym:ID has none."""
        names = [name for name, value in vars(self.bars).items() if value != getattr(DataOptions, name)]
        names = [name for name in names if name != "gpu" or self.bars.gpu != "cpu"]
        own = {"expanded": self.expanded, "cache_path": self.cache_path, "test_days": self.test_days,
               "no_preprocessing": not self.preprocessing}  # fmt: skip
        names += [name for name, value in own.items() if value]
        if names:
            flags = ", ".join("--" + name.replace("_", "-") for name in names)
            raise InputError(f"--env {self.env} has no bars: give it without {flags}")

    def budget(self) -> Budget:
        given = {"timesteps": self.timesteps, "episodes": self.episodes, "iterations": self.iterations}
        if not any(value is not None for value in given.values()):
            given = {"iterations": TEST_RUN["iterations"]} if self.test_run else {"timesteps": 100_000}
        return Budget(**given)


def whole(environment: Mapping[str, Any], name: str) -> int:
    """An option of the environment that is a number of bars, 1 where it is not given.

    Raises:
        InputError: it is no whole number.
    """
    value = environment.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        raise InputError(f"--env-options {name}={value}: accepted is a whole number of bars")
    return int(value)


def can_be_judged(env: str | None) -> bool:
    """Only models of a market's own environments can; of a constructor that is no class nobody can tell beforehand."""
    found = MarketVecEnv if env is None else find_env(env)
    return not isinstance(found, type) or issubclass(found, MarketVecEnv)


def options_of(arguments: list[str]) -> tuple[type, list[str]]:
    """(dataclass of the options, with the chosen agent's hyper-parameters; the arguments, with those of --config)."""
    _, config = find_agent(given("agent", arguments) or Options.agent)
    named = frozenset(name for name in SIZES if given(name, arguments) is not None)
    own: list[Any] = [("given", Any, field(init=False, default=named))]
    if config is not PPOConfig:
        own.append(("hyper", config, field(default_factory=config)))
        if "batch_size" in config.__dataclass_fields__:  # there it is the agent's: of a gradient step, not of a rollout
            own.append(("batch_size", Any, field(init=False, default=None)))
    options = make_dataclass("Options", own, bases=(Options,), frozen=True)
    options.__doc__ = Options.__doc__
    return options, with_config(options, arguments)


def main(options: Options) -> int:
    check_name("--run", options.run, "<logs>/runs")
    budget = options.budget()
    for name in ("n_envs", "n_steps", "clock_groups"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    plain_env = options.env is not None and options.env.startswith("gym:")
    if plain_env:
        options.check_no_market()
    market = None if plain_env else options.data().market()
    environment = options.environment()
    split = None
    if market is not None:
        lookback, lag = (whole(environment, name) for name in ("lookback", "decision_lag"))
        if can_be_judged(options.env):
            split = hold_out(market, options.test_days, lookback, lag)
        elif options.test_days or options.deploy:
            raise InputError(f"environment {options.env}: its models cannot be kept and judged: give --test-days 0")
    if split is None and options.deploy:
        raise InputError("--deploy needs held-out days of a market: give --test-days")
    settings = TrainSettings(
        env=options.env or default_env(market).__name__,
        n_envs=options.n_envs or (TEST_RUN["n_envs"] if options.test_run else None),
        budget=budget,
        folder=options.logs / "runs" / options.run,
        seed=options.seed,
        agent_name=options.agent,
        agent=options.hyperparameters(),
        segments=None if split is None else split.search,
        preprocess=options.preprocessing,
        network=options.network.spec(),
        env_options=environment,
        batch_size=options.batch_size,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        checkpoint=options.checkpoint,
        fresh=options.fresh,
        memory=options.memory,
        given=options.given | ({"horizon_len"} if options.n_steps is not None else set()),
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
        own = result.timesteps // (done.settings.agent.horizon_len * done.settings.n_envs)
        before = "" if own == result.iterations else f" ({result.iterations} with those before)"
        print(
            f"{own} iterations{before}, {result.timesteps} steps in {result.seconds:.1f} s "
            f"({result.steps_per_second:.0f} steps/s)"
        )
    if result.figures:
        print("  ".join(f"{name} {values[0]:.4g}" for name, values in result.figures.items()))
    print(done.memory)
    print(f"checkpoint: {result.checkpoint}")
    if result.interrupted:
        print("interrupted: --resume goes on from here")
        return 130
    if split is not None:
        tell(
            judge_run(
                market, done, split, options.logs,
                skip_posterior=options.skip_posterior, deploy=options.deploy, limits=options.limits,
            )
        )  # fmt: skip
    return 0


def tell(found: Judgement) -> None:
    """Print what came of the held-out days, and where things are."""
    Console().print(score_table(found.model, found.holding, found.score))
    if found.verdict is not None and found.verdict.passed:
        waits = "it runs in the champion's shadow first" if found.waits else "it was rolled back, and is in quarantine"
        print("the gate passed it;", f"deployed to {found.deployed}" if found.deployed else waits)
    elif found.verdict is not None:
        print("the gate refused it:", *found.verdict.reasons, sep="\n  ")
    print(f"report:    {found.report.json}\npicture:   {found.report.png}")
    if found.posterior is not None:
        print(f"posterior: {found.posterior.json}\npicture:   {found.posterior.png}")
    print(f"model:     {found.bundle.folder}")


if __name__ == "__main__":
    run(options_of, main)
