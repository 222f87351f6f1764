"""The main job: search configurations, judge the best on held-out bars, deploy it if it passes, paper-trade it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drl_agents.deployment.gate import GateLimits
from drl_agents.deployment.job_plan import JobSettings
from drl_agents.deployment.main_job import JobResult, run_main_job
from drl_agents.training.commandline import DataOptions, OutputOptions, check_name, run, terminal
from drl_agents.training.config import read_rules
from drl_agents.training.device import MemoryOptions
from drl_agents.training.interrupt import Interrupt
from environments.errors import InputError


@dataclass(frozen=True)
class Options:
    """Search, judge, deploy and paper-trade. Resumes the study of that name if there is one."""

    study_name: str = "sample"
    """name of the study; its files go to <logs>/studies/<name>"""
    n_trials: int = 20
    """trials the study is to have in all, pruned and failed ones included"""
    n_envs: int = 1
    """environments each agent trains in, side by side"""
    n_steps: int | None = None
    """steps of each environment per rollout (horizon_len); default: searched"""
    batch_size: int | None = None
    """samples of a minibatch, in place of a searched number of minibatches: a divisor of n_envs * n_steps"""
    timesteps: int = 20_000
    """environment steps each fold's agent trains for"""
    n_splits: int = 5
    """groups the search bars are cut into"""
    test_groups: int = 2
    """groups each fold tests on: 5 and 2 give 10 folds"""
    holdout_bars: int | None = None
    """last bars, kept from the study; default: a fifth"""
    embargo: int | None = None
    """bars after each test range that are not trained on; default: 1% of the search bars"""
    folds_per_batch: int | None = None
    """folds trained side by side; a trial can be pruned between batches; default: half of them"""
    seeds: int = 1
    """agents trained on each fold of a trial, with different random numbers; the trial's value is their mean"""
    population: int | Literal["auto"] = "auto"
    """trials drawn and trained side by side, one network shape per batch; auto: what keeps a CPU core busiest, at
    most 8 and a fifth of --n-trials; a study that goes on keeps what it began with"""
    n_seeds: int = 3
    """seeds the best configuration is refitted with"""
    seed: int = 0
    """seed of everything random"""
    env: str | None = None
    """environment: a built-in name, an installed one, or package.module:Class; default: by asset class"""
    storage: str | None = None
    """Optuna storage: a journal file or sqlite:///FILE for workers of one host, a postgresql:// URL for workers of
    several; default: a journal file in the study's folder"""
    logs: Path = Path("logs")
    """folder everything is written under"""
    deploy: bool = True
    """make the model its market's champion if it passes the gate"""
    action: str = "trades"
    """what actions mean: trades, weights, signal_size (of a market of one symbol), regimes, or an installed scheme"""
    rules: Path | None = None
    """YAML file of order sizes by symbol: increment, min_quantity, min_notional, fractional; default: the venue's"""
    reward: str | None = None
    """a reward term, or several with weights (excess:1,turnover:0.1); default: searched"""
    episode_length: int = 1_000
    """bars of a training episode"""
    decision_lag: int = 1
    """bars between a decision and its fill"""
    fill_at: str = "open"
    """fill at the open or the close of that bar"""
    initial_cash: float = 100_000.0
    """currency an account begins with"""
    commission_bps: float | None = None
    """basis points per side; default: the venue's"""
    spread_bps: float | None = None
    """basis points of traded value; default: 2"""
    slippage_bps: float | None = None
    """upper end of uniform slippage, basis points; default: 5"""
    impact_coef: float | None = None
    """coefficient of square-root market impact; default: 0.01"""
    impact_reference: Literal["portfolio", "volume"] | None = None
    """what the traded value is compared with: the portfolio's value, or what the bar traded; default: portfolio"""
    participation: float | None = None
    """share of a bar's volume an order may take, the rest lapses; default: no limit"""
    fee_in: Literal["quote", "received"] | None = None
    """take the commission in currency, or from what a trade brings in; default: received for crypto, else quote"""
    margin: float | None = None
    """limit of gross exposure in equities, 1 to 4; default: 1, a cash account; stocks only"""
    shorting: bool = False
    """let more be sold than is held; stocks only"""
    borrow_bps: float | None = None
    """basis points a year of the value that is short; default: 0"""
    margin_rate_bps: float | None = None
    """basis points a year of negative cash; default: 0"""
    maintenance_margin: float | None = None
    """share of the long value that equity must not fall under, or all is closed by force; default: 0.25"""
    maintenance_margin_short: float | None = None
    """the same of the short value; default: 0.3"""
    clock_groups: int | None = None
    """clocks of each agent: its environments share them equally, and what they see is computed once per clock and bar;
    default: each environment has its own"""
    group_baseline: bool = False
    """take the mean advantage of the others on its clock off each environment's; with clocks that are shared"""
    agent: str = "ppo"
    """what learns: ppo, shac, a2c, sac, td3, ddpg, dqn, an installed agent, or package.module:Class"""
    network: str = "mlp"
    """of every trial's policy: mlp, gru, transformer, lightweight, or package.module:Class, an nn.Module of your own"""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """precision of matrix products"""
    compile: Literal["auto", "on", "off"] = "auto"
    """compile the inner loops; auto: from four million steps of a batch of trials on, all its folds together"""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    limits: GateLimits = field(default_factory=GateLimits)
    bars: DataOptions = field(default_factory=DataOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def settings(self) -> JobSettings:
        names = (
            "action", "reward", "episode_length", "decision_lag", "fill_at", "initial_cash", "commission_bps",
            "spread_bps", "slippage_bps", "impact_coef", "impact_reference", "participation", "fee_in", "margin",
            "borrow_bps", "margin_rate_bps", "maintenance_margin", "maintenance_margin_short", "clock_groups",
        )  # fmt: skip
        env_options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.shorting:
            env_options["shorting"] = True
        if self.rules is not None:
            env_options["rules"] = read_rules(self.rules)
        same = set(JobSettings.__dataclass_fields__) & set(Options.__dataclass_fields__)
        asked = {name: getattr(self, name) for name in same}
        asked["population"] = None if self.population == "auto" else self.population
        return JobSettings(**asked, env_options=env_options)


def main(options: Options) -> int:
    check_name("--study-name", options.study_name, "<logs>/studies")
    counts = ("n_trials", "n_envs", "timesteps", "n_seeds", "seeds", "population", "folds_per_batch")
    for name, least in (*((name, 1) for name in counts), ("n_splits", 2)):
        if getattr(options, name) in (None, "auto"):
            continue
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least {least} is needed")
    if options.n_steps is not None and options.n_steps < 1:
        raise InputError(f"--n-steps {options.n_steps}: at least 1 is needed")
    if not 1 <= options.test_groups < options.n_splits:
        raise InputError(
            f"--test-groups {options.test_groups}: accepted are 1 to {options.n_splits - 1}, fewer than --n-splits"
        )
    market = options.bars.market()
    with Interrupt() as interrupt:
        result = run_main_job(
            market, options.settings(), stop=lambda: interrupt.requested, console=terminal(options.output)
        )
    if not result.complete:
        print(f"interrupted: the study is saved; the same command goes on with it (--study-name {options.study_name})")
        return 130
    if result.candidate is None:
        print(f"the study is complete; another worker judges it: {options.logs / 'studies' / options.study_name}")
        return 0
    tell(result, options)
    return 0


def tell(result: JobResult, options: Options) -> None:
    """Print what came of it and where things are."""
    model, held = (r.figures() for r in (result.candidate.result, result.candidate.baselines[0]))
    if result.candidate.bundle.manifest["market"]["synthetic"]:
        print("SYNTHETIC bars: nothing here says anything about a real market")
    for name in ("sharpe", "total_return", "max_drawdown", "n_trades"):
        print(f"{name:>14}: {_text(model[name]['value'])}   holding equal weight: {_text(held[name]['value'])}")
    if result.verdict.passed:
        print(
            f"the gate passed it; deployed to {result.deployed}"
            if result.deployed
            else "the gate passed it; not deployed"
            + (" yet: the champion is being traded, it runs in its shadow first" if options.deploy else "")
        )
    else:
        print("the gate refused it:")
        for reason in result.verdict.reasons:
            print(f"  {reason}")
    print(f"paper trader against back-test: largest relative difference {result.paper_difference:.1e}")
    print(f"report:        {result.report.json}")
    print(f"equity curve:  {result.report.png}")
    print(f"model:         {result.candidate.bundle.folder}")
    print(f"paper trading: {options.logs / 'paper' / options.study_name}")


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    run(Options, main)
