"""The auto-replace job: two at once judge a study once."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

from drl_agents.deployment import replacer
from drl_agents.deployment.job_plan import JobSettings, Plan
from drl_agents.deployment.registry import Registry
from environments.errors import InputError


def judge(logs: str, both: object, outcomes: object) -> None:
    """One process: replace_best with a refit that takes its time and leaves a line."""
    folder = Path(logs)

    def refit(*arguments: object, **options: object) -> None:
        with (folder / "refits").open("a") as file:
            file.write("refit\n")
        time.sleep(1.5)
        raise InputError("the refit is over")

    trial = SimpleNamespace(number=4)
    replacer.refit, replacer.best_trial = refit, lambda study: trial
    replacer.plan_bars = lambda market, settings: Plan((6, 9), [(0, 5)], [])
    replacer.data_facts = lambda market, plan: {}
    replacer.Workload = lambda *arguments, **options: None
    study = SimpleNamespace(user_attrs={"fingerprint": "f", "env": "E"}, study_name="s")
    settings = JobSettings("s", logs=folder)
    both.wait(60)
    try:
        result = replacer.replace_best(study, SimpleNamespace(fingerprint="f"), settings, Registry(folder))
        outcomes.put((result.trial, result.skipped))
    except InputError as error:
        outcomes.put(("refitted", str(error)))


def test_two_at_once_refit_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    both, outcomes = context.Barrier(2), context.Queue()
    processes = [context.Process(target=judge, args=(str(tmp_path), both, outcomes)) for _ in range(2)]
    for process in processes:
        process.start()
    told = sorted((outcomes.get(timeout=120) for _ in processes), key=lambda outcome: outcome[0] is None)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "refits").read_text() == "refit\n"
    assert told[0] == ("refitted", "the refit is over")
    trial, skipped = told[1]
    # None is no trial: it is looked at again when the other one is through.
    assert trial is None and skipped.startswith("trial 4 is being judged by another process") and "\n" not in skipped
    assert not (tmp_path / "studies" / "s" / "refit.json").exists(), "the lock is given back, though the refit failed"
