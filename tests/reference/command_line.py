"""A script's command line, run in this process."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest

from drl_agents.training.commandline import run


def call_script(module: ModuleType, arguments: Sequence[str], capture) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of one of `scripts`.

    capture: pytest's `capsys`; what it caught before is thrown away.
    """
    capture.readouterr()
    with pytest.raises(SystemExit) as leaving:
        run(getattr(module, "options_of", None) or module.Options, module.main, [*arguments])
    return leaving.value.code or 0, *capture.readouterr()
