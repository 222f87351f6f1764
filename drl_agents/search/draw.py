"""What the trials of a batch draw, and when one is pruned: functions of the seed and of what the batch knows.

The rule. Trials are drawn in batches of K with consecutive ordinals. A batch knows the trials that had ended when it
was drawn, in the order of their ordinals, and the parameters of those that were being run then; both are written down
with it. From these, the study's seed and the ordinals everything follows; time and the process do not enter.

    choices (what changes a shape or which code runs) are drawn once per batch, so that its trials are one population:
        at random in the first `CHOICE_BATCHES` batches, then by TPE as part of a whole draw, the first trial's
    ranges (numbers) are drawn by TPE for each trial, given the choices; its mates so far count as bad
        (the constant liar: Ginsbourger, Le Riche and Carraro, 2010), which keeps them apart

With K = 1 this is plain TPE (Bergstra et al., 2011), one trial after the other. Larger batches see fewer combinations
of choices, and results later.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from drl_agents.search.config import derived_seed
from drl_agents.search.space import space_of, suggest

STARTUP_TRIALS = 8  # drawn at random before the sampler trusts its model, and ended before anything is pruned
CHOICE_BATCHES = 4  # batches of several trials whose choices are drawn at random


class Knowledge:
    """What a batch knows.

    Args:
        ended: the trials that had ended when the batch was drawn, in the order of their ordinals.
        running: the parameters of those that were being run then.
        n_batches: batches that the ended trials came from.
        agent: whose trials they are.
    """

    def __init__(
        self,
        ended: Sequence[FrozenTrial],
        running: Sequence[Mapping[str, Any]] = (),
        n_batches: int = 0,
        agent: str = "ppo",
    ) -> None:
        self.n_batches, self.agent = n_batches, agent
        # A study of its own, in memory: sampler and pruner see what is in it and nothing that came later.
        self._study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
        for trial in ended:
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._study.add_trial(
                    create_trial(
                        state=trial.state,
                        value=trial.value if trial.state == TrialState.COMPLETE else None,
                        params=trial.params,
                        distributions=trial.distributions,
                        intermediate_values=trial.intermediate_values,
                    )
                )
        for params in running:
            self._study.add_trial(self._running(params, {}))

    def draw(self, first: int, size: int, seed: int, fixed: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The parameters of the trials with the ordinals first, ..., first + size - 1; to be called once.

        Args:
            seed: the study's.
            fixed: environment options that are not searched.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            choices: dict[str, Any] = {}
            if size > 1 and self.n_batches < CHOICE_BATCHES:
                sampler = RandomSampler(seed=derived_seed(seed, "choices", first))
                choices = self._choices(self._ask(sampler, fixed, forget=True))
            drawn = []
            for ordinal in range(first, first + size):
                own = TPESampler(
                    seed=derived_seed(seed, "sampler", ordinal),
                    n_startup_trials=STARTUP_TRIALS,
                    multivariate=True,
                    constant_liar=True,
                )
                drawn.append(self._ask(PartialFixedSampler(choices, own) if choices else own, fixed))
                if size > 1:
                    choices = choices or self._choices(drawn[0])
            return drawn

    def _ask(
        self, sampler: optuna.samplers.BaseSampler, fixed: Mapping[str, Any] | None, forget: bool = False
    ) -> dict[str, Any]:
        self._study.sampler = sampler
        trial = self._study.ask()
        suggest(trial, fixed, self.agent)
        if forget:
            self._study.tell(trial, state=TrialState.FAIL)
        return trial.params

    def prunes(self, values: Mapping[int, float]) -> bool:
        """Should a trial of the batch with these intermediate values {step: value} end now?

        It should where its best is below the median, at the last step, of the trials the batch knows to have run to
        their end (Golovin et al., 2017, "Google Vizier", section 3.2.2), once there are `STARTUP_TRIALS` of these.
        """
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
        return pruner.prune(self._study, self._running({}, values))

    def _running(self, params: Mapping[str, Any], values: Mapping[int, float]) -> FrozenTrial:
        known = {p.name: p.distribution for p in space_of(self.agent)}
        return create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: known[name] for name in params},
            intermediate_values=dict(values),
        )

    def _choices(self, params: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {p.name for p in space_of(self.agent) if p.choices}
        return {name: value for name, value in params.items() if name in chosen}
