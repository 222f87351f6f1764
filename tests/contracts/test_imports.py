"""The house rules on imports, read off the syntax trees: nothing is imported to check them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ("environments", "drl_agents", "scripts")
# Outside libraries and the only places that may import them.
DOORS = {
    "arch": ("drl_agents/evaluation/bootstrap.py",),
    "optuna": ("drl_agents/search/",),
    "textual": ("drl_agents/monitoring/terminal.py",),
    "matplotlib": ("drl_agents/evaluation/report.py", "drl_agents/evaluation/posterior_plot.py"),
    "stable_baselines3": ("drl_agents/compat/", "drl_agents/benchmark/"),
    "sklearn": ("drl_agents/compat/sklearn.py",),
    "msgpack": ("environments/live/alpaca_local/",),
    "starlette": ("drl_agents/monitoring/", "environments/live/alpaca_local/"),
    "uvicorn": ("drl_agents/monitoring/", "environments/live/alpaca_local/"),
    "yaml": ("drl_agents/training/config.py",),
    "alpaca": ("environments/data/alpaca.py", "environments/live/alpaca_"),
}


@cache
def sources() -> dict[str, ast.Module]:
    """{path from the root: syntax tree} of every module of the house."""
    files = [file for part in HOUSE for file in sorted((ROOT / part).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in files}


def imported(path: str, tree: ast.Module) -> set[str]:
    """The absolute dotted names a module imports, wherever in it, `from x import y` as x.y."""
    package = path.split("/")[:-1]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def importers(module: str) -> list[str]:
    """The files that import `module` or something in it."""
    return [
        path
        for path, tree in sources().items()
        if any(name == module or name.startswith(module + ".") for name in imported(path, tree))
    ]


def test_the_reader_sees_every_form():
    """A check that overlooks an import would pass for ever."""
    text = "import optuna\nfrom yaml import load\ndef f():\n    import matplotlib.pyplot as p\n"
    text += "    from . import q\n    from ..live import r\n"
    seen = imported("environments/data/some.py", ast.parse(text))
    assert seen == {"optuna", "yaml.load", "matplotlib.pyplot", "environments.data.q", "environments.live.r"}
    assert "environments/market_env.py" in importers("environments.portfolio") and len(sources()) > 40


def test_environments_import_no_agents():
    for above in ("drl_agents", "scripts"):
        assert [path for path in importers(above) if path.startswith("environments/")] == []


def test_agents_import_no_scripts():
    assert [path for path in importers("scripts") if path.startswith("drl_agents/")] == []


@pytest.mark.parametrize("library", DOORS)
def test_one_door_per_library(library):
    assert [path for path in importers(library) if not path.startswith(DOORS[library])] == []


def test_only_scripts_import_monitoring():
    elsewhere = [
        p for p in importers("drl_agents.monitoring") if not p.startswith(("scripts/", "drl_agents/monitoring/"))
    ]
    assert elsewhere == []


def test_no_catch_all_modules():
    names = {part.removesuffix(".py") for path in sources() for part in path.split("/")}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}
