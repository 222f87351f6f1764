"""What a batch draws: a function of the seed, the ordinals and what it knows."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from drl_agents.search import draw
from drl_agents.search.draw import Knowledge
from drl_agents.search.space import SPACE

RANGES = {p.name: p for p in SPACE if not p.choices}
CHOICES = {p.name for p in SPACE if p.choices}


def ended(count: int, state: TrialState = TrialState.COMPLETE, best: str = "tanh"):
    """Trials of random draws; those with the activation `best` were better."""
    drawn = Knowledge([]).draw(0, 1, seed=0)
    for i in range(1, count):
        drawn += Knowledge([]).draw(i, 1, seed=0)
    known = {p.name: p.distribution for p in SPACE}
    return [
        create_trial(
            state=state,
            value=float(params["activation"] == best) + 0.01 * i,
            params=params,
            distributions={name: known[name] for name in params},
            intermediate_values={2: float(i)},
        )
        for i, params in enumerate(drawn)
    ]


@pytest.mark.parametrize("size", [1, 4])
def test_the_same_knowledge_draws_the_same(size):
    first = Knowledge(ended(12), n_batches=12).draw(12, size, seed=3)
    assert first == Knowledge(ended(12), n_batches=12).draw(12, size, seed=3)
    assert first != Knowledge(ended(12), n_batches=12).draw(12, size, seed=4)
    assert first != Knowledge(ended(12), n_batches=12).draw(16, size, seed=3)
    assert first != Knowledge(ended(12, best="relu"), n_batches=12).draw(12, size, seed=3)


@pytest.mark.parametrize(("known", "batches"), [(0, 0), (12, 3), (12, 12)])
def test_a_batch_shares_its_choices_and_differs_in_every_range(known, batches):
    drawn = Knowledge(ended(known), n_batches=batches).draw(known, 5, seed=1)
    for name in drawn[0]:
        assert len({params[name] for params in drawn}) == (1 if name in CHOICES else 5), name
    for params in drawn:
        for name, p in RANGES.items():
            assert name not in params or p.low <= params[name] <= p.high


def test_choices_are_at_random_in_the_first_batches_and_learned_then():
    """TPE has seen that one activation is better, and mostly draws it; a random draw does not."""

    def share(batches: int) -> float:
        hits = 0
        for seed in range(20):
            drawn = Knowledge(ended(24), n_batches=batches).draw(24, 2, seed=seed)
            hits += drawn[0]["activation"] == "tanh"
        return hits / 20

    assert 0.2 <= share(draw.CHOICE_BATCHES - 1) <= 0.8
    assert share(draw.CHOICE_BATCHES) >= 0.9


def test_one_by_one_is_plain_tpe():
    """Against Optuna's own loop over the same results."""
    history = ended(10)
    study = optuna.create_study(direction="maximize")
    study.add_trials(history)
    sampler = optuna.samplers.TPESampler(
        seed=draw.derived_seed(5, "sampler", 10), n_startup_trials=draw.STARTUP_TRIALS, multivariate=True
    )
    study.sampler = sampler
    trial = study.ask()
    draw.suggest(trial)
    assert Knowledge(history, n_batches=10).draw(10, 1, seed=5) == [trial.params]


def test_what_is_being_run_is_kept_away_from():
    history = ended(12)
    plain = Knowledge(history, n_batches=12).draw(12, 1, seed=2)
    assert Knowledge(history, running=plain, n_batches=12).draw(12, 1, seed=2) != plain


def test_fixed_options_are_not_drawn():
    drawn = Knowledge(ended(12), n_batches=12).draw(12, 2, 1, {"reward": "excess", "action": "weights"})
    assert all("reward" not in params and "sharpness" in params and "max_trade" not in params for params in drawn)


def test_pruned_below_the_median_of_what_was_known():
    knowledge = Knowledge(ended(9))  # 0, 1, ..., 8 at step 2: the median is 4
    assert knowledge.prunes({2: 3.9}) and not knowledge.prunes({2: 4.1})
    assert not knowledge.prunes({1: 9.0, 2: 3.0})  # its best counts
    assert not knowledge.prunes({3: -5.0})  # nothing is known of that step
    assert not Knowledge(ended(draw.STARTUP_TRIALS - 1)).prunes({2: -9.0})
    assert not Knowledge(ended(9, TrialState.PRUNED)).prunes({2: -9.0})
