"""From a verdict to a champion or a challenger, and what a person does by hand: --verify-log and --rollback."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from drl_agents.deployment import candidate as candidate_module
from drl_agents.deployment import main_job
from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.candidate import holdout_looks
from drl_agents.deployment.gate import Check, Verdict
from drl_agents.deployment.job_plan import JobSettings, plan_bars
from drl_agents.deployment.main_job import decide
from drl_agents.deployment.registry import Registry, read_pointer, slot_of
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.search.config import TrialConfig
from drl_agents.search.place import StudyPlace
from drl_agents.training.runlock import RunLock
from drl_agents.training.trainer import TrainingDiverged
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from scripts import auto_replace_best

PASSED = Verdict((Check("trades", 30, ">=", 20, "filled orders"),))
FAILED = Verdict((Check("trades", 3, ">=", 20, "filled orders"),))
FIGURES = {"sharpe": {"value": 1.5, "unit": "annualised Sharpe ratio"}}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    env = VectorizedCryptoEnvAlpaca(Market.from_bars(load_bars("synthetic", options={"n_bars": 80}, seed=1)), 1)
    policies = {seed: ActorCritic(PolicySpec.of(env, hidden=(4,)), seeds=(seed,)) for seed in (1, 2)}
    return [
        load_bundle(
            save_bundle(folder / f"{seed}", policy, 0, env, "VectorizedCryptoEnvAlpaca", {"study": "s", "trial": seed})
        )
        for seed, policy in policies.items()
    ]


@pytest.fixture
def registry(tmp_path, bundles) -> Registry:
    registry = Registry(tmp_path / "logs")
    registry.promote(bundles[0], {})
    return registry


@pytest.fixture
def slot(bundles) -> str:
    return slot_of(bundles[0].manifest["market"])


def candidate(bundle: Bundle) -> SimpleNamespace:
    return SimpleNamespace(bundle=bundle, result=SimpleNamespace(figures=lambda: FIGURES))


def events(registry: Registry) -> list[str]:
    return [entry["event"] for entry in registry.audit.entries()][2:]


def test_what_passed_is_promoted_where_nobody_trades(registry, bundles, slot):
    place = decide(registry, candidate(bundles[1]), PASSED, True)
    assert load_bundle(place).id == bundles[1].id == registry.champion_id(slot)
    assert events(registry) == ["promoting", "promoted"]
    assert decide(registry, candidate(bundles[1]), PASSED, True) == registry.champion(slot).folder


def test_what_passed_is_a_challenger_where_the_champion_is_traded(registry, bundles, slot):
    terms = {"shadow_bars": 7, "positions": "flatten", "health_bars": 9, "max_loss": 0.2, "false_alarms": 0.05}
    with registry.attendance(slot):
        assert decide(registry, candidate(bundles[1]), PASSED, True, terms) is None
    assert registry.champion_id(slot) == bundles[0].id and registry.challenger_id(slot) == bundles[1].id
    assert read_pointer(registry.challenger_file(slot))["terms"] == terms
    assert events(registry) == ["challenger"]


@pytest.mark.parametrize("verdict", [PASSED, FAILED], ids=["--no-deploy", "failed"])
def test_what_is_not_deployed_is_on_record(registry, bundles, slot, verdict):
    assert decide(registry, candidate(bundles[1]), verdict, verdict is FAILED) is None
    assert registry.champion_id(slot) == bundles[0].id and events(registry) == ["refused"]


def test_what_was_rolled_back_is_refused_for_good(registry, bundles, slot):
    decide(registry, candidate(bundles[1]), PASSED, True)
    registry.roll_back(slot, ["a loss"], {})
    assert decide(registry, candidate(bundles[1]), PASSED, True) is None
    last = registry.audit.entries()[-1]
    assert last["event"] == "refused" and "quarantine" in last["reasons"][0]
    # The same weights under another id: refitted by another version of the code.
    again = replace(bundles[1], manifest={**bundles[1].manifest, "id": "another"})
    assert registry.quarantined(again) and not registry.quarantined(bundles[0])
    assert registry.champion_id(slot) == bundles[0].id


def run_script(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["auto_replace_best.py", *arguments])
    with pytest.raises(SystemExit) as left:
        auto_replace_best.run(auto_replace_best.Options, auto_replace_best.main)
    said = capsys.readouterr()
    return left.value.code or 0, said.out + said.err


def test_verify_log_names_the_first_broken_line(registry, tmp_path, monkeypatch, capsys):
    logs = str(tmp_path / "logs")
    assert run_script(monkeypatch, capsys, "--verify-log", "--logs", logs) == (
        0, f"{registry.audit.path}: 2 lines, unbroken\n",
    )  # fmt: skip
    content = registry.audit.path.read_bytes()
    registry.audit.path.write_bytes(content.replace(b'"promoting"', b'"PROMOTING"'))
    status, told = run_script(monkeypatch, capsys, "--verify-log", "--logs", logs)
    assert status == 1 and "line 2 of 2" in told
    registry.audit.path.write_bytes(b"")
    status, told = run_script(monkeypatch, capsys, "--verify-log", "--logs", logs)
    assert status == 1 and "is missing" in told


def test_verify_log_names_a_damaged_pointer(registry, slot, tmp_path, monkeypatch, capsys):
    """What it was written with is not known: that is no word on the log."""
    registry.champion_file(slot).write_text("{")
    status, told = run_script(monkeypatch, capsys, "--verify-log", "--logs", str(tmp_path / "logs"))
    assert status == 2 and told.count("\n") == 1 and f"{registry.champion_file(slot)}: damaged" in told


def test_rollback_by_hand(registry, bundles, slot, tmp_path, monkeypatch, capsys):
    logs = str(tmp_path / "logs")
    registry.promote(bundles[1], {})
    status, told = run_script(monkeypatch, capsys, "--rollback", "--logs", logs)
    assert status == 0 and bundles[0].id[:12] in told and registry.champion_id(slot) == bundles[0].id
    status, told = run_script(monkeypatch, capsys, "--rollback", "--logs", logs)
    assert status == 2 and told.count("\n") == 1 and "no champion before" in told
    assert registry.champion_id(slot) == bundles[0].id


def test_a_study_is_needed_otherwise(monkeypatch, capsys, tmp_path):
    status, told = run_script(monkeypatch, capsys, "--once", "--logs", str(tmp_path))
    assert status == 2 and "--study-name: needed" in told


@pytest.mark.parametrize("count", [0, 1])
def test_no_model_is_judged_alone(monkeypatch, capsys, tmp_path, count):
    given = ("--once", "--study-name", "s", "--logs", str(tmp_path), "--n-seeds", str(count))
    status, told = run_script(monkeypatch, capsys, *given)
    assert status == 2 and told.count("\n") == 1 and f"--n-seeds {count}: at least 2 are needed" in told


def test_a_roll_back_to_a_damaged_bundle_changes_nothing(registry, bundles, slot, tmp_path):
    registry.promote(bundles[1], {})
    before = Path(registry.folder / read_pointer(registry.champion_file(slot))["previous"]["path"])
    (before / "policy.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"policy\.safetensors"):
        registry.roll_back(slot, ["by hand"], {})
    assert registry.champion_id(slot) == bundles[1].id and not registry.quarantined(bundles[1])
    assert registry.verify().broken is None


def test_a_champion_that_changed_while_it_was_judged_is_judged_against(registry, bundles, slot, monkeypatch):
    against = []

    def gate(candidate, champion, workload, limits):
        against.append(champion.id)
        if len(against) == 1:
            registry.promote(bundles[1], {})  # by another process
        return FAILED

    monkeypatch.setattr(main_job, "pass_gate", gate)
    verdict, deployed = main_job.judge_and_decide(registry, candidate(bundles[0]), None, None, True)
    assert against == [bundles[0].id, bundles[1].id] and verdict is FAILED and deployed is None
    assert events(registry)[-1] == "refused"


def test_looks_outlive_a_kill(tmp_path):
    """A line cut short is not counted, and spoils no other."""
    file = tmp_path / "deployment" / "holdout_looks.jsonl"
    assert holdout_looks(file, "f:8-10", "a") == 1
    with file.open("a") as torn:
        torn.write('{"model": ')
    assert [holdout_looks(file, "f:8-10", model) for model in ("a", "b", "b", "c")] == [1, 2, 2, 3]


def test_looks_are_of_the_bars_and_not_of_the_study(tmp_path):
    """A fourth model on the same bars is their fourth, of whatever study; on other bars it is the first."""
    file = tmp_path / "holdout_looks.jsonl"
    assert [holdout_looks(file, "f:8-10", model) for model in ("a", "b", "c", "d")] == [1, 2, 3, 4]
    assert [holdout_looks(file, bars, "d") for bars in ("f:7-10", "g:8-10", "f:8-10")] == [1, 1, 4]


def test_a_refit_that_diverges_is_told_in_one_line(monkeypatch):
    """A daemon that watches a study goes on, as after any other."""
    trial = SimpleNamespace(number=4, user_attrs={"config": TrialConfig({}, {}, {}).to_dict()})
    monkeypatch.setattr(candidate_module, "best_trial", lambda study: trial)

    def diverges(*args):
        raise TrainingDiverged("loss is not finite", [0])

    monkeypatch.setattr(candidate_module, "train_members", diverges)
    with pytest.raises(InputError, match="trial 4 diverges when refitted on all search bars: loss"):
        candidate_module.refit(None, None, None, [], (0, 1), n_seeds=1, seed=0, lineage={})


def test_a_long_lookback_is_purged():
    """The bars around a test range that an observation of 40 bars would share with it are not trained on."""
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 800}, seed=1))
    plan = plan_bars(market, JobSettings("s", n_splits=4, test_groups=1, embargo=0, env_options={"lookback": 40}))
    assert plan.holdout[0] - plan.search[-1][1] == 41
    for fold in plan.folds:
        for a, b in fold.test:
            assert all(stop <= a - 41 or start >= b + 41 for start, stop in fold.train)


def test_a_lookback_that_is_no_number_is_told_in_one_line():
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 400}, seed=1))
    with pytest.raises(InputError, match="lookback=four: accepted is a whole number of bars"):
        plan_bars(market, JobSettings("s", env_options={"lookback": "four"}))


def test_one_worker_judges_a_study_the_others_leave_it_at_that(tmp_path):
    place = StudyPlace("s", tmp_path / "s")
    with RunLock(place.folder / "refit.json"):
        result = main_job._finish(None, place, None, None, None, None)
    assert result.complete and result.candidate is None
