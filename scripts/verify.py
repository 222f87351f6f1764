"""Check Python, packages, devices, data, a rollout and the study storage; say how to mend what is broken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drl_agents.search.study import try_storage
from drl_agents.training.commandline import OutputOptions, run
from drl_agents.training.verify import check_all


@dataclass(frozen=True)
class Options:
    """Exit status 1 if anything that is needed fails."""

    logs: Path = Path("logs")
    """folder runs write to"""
    output: OutputOptions = field(default_factory=OutputOptions)


def main(options: Options) -> int:
    findings = check_all(options.logs, try_storage)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name}: {finding.detail}")
        if not finding.passed:
            print(f"      mend: {finding.mend}")
    return int(any(f.needed and not f.passed for f in findings))


if __name__ == "__main__":
    run(Options, main)
