"""Whether a device multiplies in less than float32 in hardware, and that one is told where it does not."""

from __future__ import annotations

import logging
import platform

import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.agents.precision import why_slow
from drl_agents.networks.policy import PolicySpec
from environments.plugin import build_env

CPU = torch.device("cpu")


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_of_a_cpu(monkeypatch, caplog, has):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has)
    assert why_slow(CPU, "off") is None
    assert (why_slow(CPU, "bf16") is None) == has
    env = build_env("gym:CartPole-v1", None, n_envs=1, seed=0)
    with caplog.at_level(logging.WARNING):
        AgentPPO(PolicySpec.of(env, hidden=(4,)), PPOConfig(amp="bf16"))
    assert ["amp=bf16" in r.getMessage() for r in caplog.records] == ([] if has else [True])


def test_float16_is_of_gpus():
    assert "float16" in why_slow(CPU, "fp16")
    assert why_slow(torch.device("cuda"), "fp16") is None and why_slow(torch.device("cuda"), "bf16") is None
