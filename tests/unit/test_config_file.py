"""Flags from a YAML file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
import tyro

from drl_agents.training.config_file import with_config
from environments.errors import InputError


@dataclass(frozen=True)
class Inner:
    gae_lambda: float = 0.95
    hidden: tuple[int, ...] = (64,)


@dataclass(frozen=True)
class Options:
    config: str | None = None
    symbols: str | None = None
    n_envs: int = 1
    timesteps: int | None = None
    shorting: bool = False
    deploy: bool = True
    inner: Inner = field(default_factory=Inner)


def parsed(tmp_path, text: str, *arguments: str) -> Options:
    (tmp_path / "train.yaml").write_text(text)
    own = with_config(Options, ["--config", str(tmp_path / "train.yaml"), *arguments])
    return tyro.cli(Options, args=own, config=(tyro.conf.OmitArgPrefixes,))


def test_all_kinds_of_values(tmp_path):
    text = "symbols: [BTC/USD, ON]\nn-envs: 64\ntimesteps: 1e6\nshorting: true\ndeploy: false\ngae_lambda: 0.9\n"
    found = parsed(tmp_path, text + "hidden: [128, 64]\n")
    assert (found.symbols, found.n_envs, found.timesteps) == ("BTC/USD,ON", 64, 1_000_000)
    assert (found.shorting, found.deploy, found.inner) == (True, False, Inner(0.9, (128, 64)))
    nothing = parsed(tmp_path, "timesteps: null\nsymbols: null\n")
    assert nothing.timesteps is None and nothing.symbols is None
    single = parsed(tmp_path, "hidden: 16\nsymbols: 600\n")
    assert single.symbols == "600" and single.inner.hidden == (16,)


def test_the_command_line_goes_before_the_file(tmp_path):
    found = parsed(
        tmp_path, "n_envs: 64\nshorting: true\nhidden: [8]\n", "--n-envs", "3", "--no-shorting", "--hidden", "5", "6"
    )
    assert (found.n_envs, found.shorting, found.inner.hidden) == (3, False, (5, 6))
    assert with_config(Options, ["--n-envs", "2"]) == ["--n-envs", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_env: 4\n", "n_env is no option; the nearest is n_envs"),
        ("gae-lamda: 0.9\n", "gae-lamda is no option; the nearest is gae_lambda"),
        ("inner: {hidden: [8]}\n", "inner is no option"),
        ("config: other.yaml\n", "config is no option"),
        ("hidden: {a: 1}\n", "hidden: {'a': 1.0}: accepted is a whole number, or a list of them"),
        ("hidden: [[1]]\n", "accepted is a whole number, or a list of them"),
        ("hidden: []\n", "accepted is a whole number, or a list of them"),
        ("n_envs: 1\nn_envs: 2\n", "given twice"),
        ("n_envs: 1\nn-envs: 2\n", "n_envs and n-envs are the same option"),
        ("n_envs: four\n", "n_envs: four: accepted is a whole number"),
        ("n_envs: 4.5\n", "n_envs: 4.5: accepted is a whole number"),
        ("n_envs: null\n", "n_envs: null: accepted is a whole number"),
        ("n_envs: true\n", "n_envs: true: accepted is a whole number"),
        ("n_envs: [1, 2]\n", "accepted is a whole number"),
        ("gae_lambda: high\n", "gae_lambda: high: accepted is a number"),
        ("shorting: yes\n", "shorting: yes: accepted is true or false"),
        ("deploy:\n", "deploy: nothing: accepted is true or false"),
        ("symbols: true\n", "symbols: true: accepted is text, or a list of them"),
        (
            "update_to_data: 1\n",
            "update_to_data is no option of this agent; those that have it are sac, td3, ddpg, dqn",
        ),
        ("xyzzyq: 1\n", "xyzzyq is no option; accepted are deploy, gae_lambda, hidden, n_envs, shorting, symbols"),
        ("", "train.yaml: a table is needed, such as 'n_envs: 64', and it is empty"),
        ("- n_envs\n", "and it is a list"),
    ],
)
def test_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        parsed(tmp_path, text)
    assert "train.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        with_config(Options, [f"--config={tmp_path / 'none.yaml'}"])
