"""What a finished study says: its best trial, and what all trials say together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import TrialState

from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.overfitting import PBOResult, probability_of_backtest_overfitting
from drl_agents.search.claims import counted
from drl_agents.search.place import StudyPlace
from environments.errors import InputError


@dataclass(frozen=True)
class StudyStatistics:
    """What the trials of a study say together.

    n_trials: tried, failed and pruned ones included. trial_sharpes: (n_trials,) per-bar out-of-sample Sharpe
    ratios, NaN where a trial has none. n_bars: bars each of them was measured on. pbo: over the trials that ran to
    their end.
    """

    n_trials: int
    trial_sharpes: np.ndarray
    n_bars: int
    pbo: PBOResult


def study_statistics(study: optuna.Study, place: StudyPlace) -> StudyStatistics:
    """PBO and the trials' Sharpe ratios, from the returns the trials left behind.

    A pruned or failed trial was tried as well: it counts, though it has no returns.
    """
    trials = counted(study)
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    columns = [place.load_returns(t) for t in done]
    sharpes = np.full(len(trials), np.nan)
    if columns:
        matrix = np.stack(columns, axis=1)
        matrix = matrix[np.isfinite(matrix).all(axis=1)]
        sharpes[: len(columns)] = [sharpe_ratio(column, 1.0) for column in matrix.T.astype(np.float64)]
    else:
        matrix = np.zeros((0, 0))
    return StudyStatistics(len(trials), sharpes, len(matrix), probability_of_backtest_overfitting(matrix))


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """The complete trial with the highest value.

    Raises:
        InputError: no trial ran to its end; says why the last one did not.
    """
    done = [t for t in counted(study) if t.state == TrialState.COMPLETE]
    if not done:
        reasons = [t.user_attrs["reason"] for t in counted(study) if "reason" in t.user_attrs]
        raise InputError(
            f"study {study.study_name!r} has no complete trial"
            + (f"; the last failed: {reasons[-1]}" if reasons else "")
        )
    return max(done, key=lambda t: t.value)
