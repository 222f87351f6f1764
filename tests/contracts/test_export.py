"""Models for other runtimes give the actions of the policy, for every network, at any batch size."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import norm

from drl_agents.agents.ppo import AgentPPO
from drl_agents.compat.export import Exported, example, export, play
from drl_agents.compat.graph_quantile import GraphQuantileNormalizer, NormalQuantile
from drl_agents.deployment.bundle import save_bundle
from drl_agents.networks.build import build_policy
from drl_agents.networks.policy import ActorCritic
from drl_agents.networks.quantile import QuantileNormalizer
from drl_agents.networks.spec import PolicySpec
from drl_agents.training.commandline import run
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = {
    "mlp": {},
    "mlp, quantiles": {"normalizer": "quantile"},
    "gru": {"network": "gru", "options": {"hidden_dim": 12}},
    "transformer": {"network": "transformer", "options": {"d_model": 16, "num_layers": 2, "n_heads": 2}},
    "mlp, per asset": {"row_size": 6, "state_size": 7, "per_asset": True, "n_assets": 2},
}


def policy_of(name: str, action: str = "box") -> ActorCritic:
    """A policy with weights and statistics that matter."""
    sizes = {"row_size": 3, "lookback": 4, "state_size": 5, "action_size": 3, "hidden": (16,)}
    policy = build_policy(PolicySpec(action=action, **sizes | NETWORKS[name]), (0,))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    normalizer = policy.row_normalizer
    if isinstance(normalizer, QuantileNormalizer):
        rows = torch.randn(500, 3, generator=random) * torch.tensor([1.0, 5.0, 0.1])
        rows[::3, 1] = 0.0  # ties
        normalizer.fit([rows])
    else:
        normalizer.set(torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[2.0, 0.5, 1.0]]))
    return policy


@pytest.mark.parametrize("action", ["box", "discrete"])
@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript_gives_the_same_actions(tmp_path, name, action):
    policy = policy_of(name, action)
    loaded = torch.jit.load(export(tmp_path / "model", policy, "torchscript"))
    for rows in (1, 7, 64):
        inputs = example(policy, rows)
        found, expected = loaded(*inputs), play(policy, *inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS)[1:])  # torch's exporter takes seconds; with quantiles it is an mlp too
def test_onnx_gives_the_same_actions(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    policy = policy_of(name)
    session = onnxruntime.InferenceSession(export(tmp_path / "model", policy, "onnx"))
    names = [item.name for item in session.get_inputs()]
    assert names == ["observation", "memory"][: len(names)] and session.get_inputs()[0].shape[0] == "batch"
    for rows in (1, 7, 64):
        inputs = example(policy, rows)
        found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        expected = play(policy, *inputs)
        for ours, theirs in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
            np.testing.assert_allclose(theirs, ours.detach().numpy(), rtol=0, atol=1e-5)


def test_a_gru_goes_on_with_the_memory_it_gave(tmp_path):
    policy = policy_of("gru")
    loaded = torch.jit.load(export(tmp_path / "model", policy, "torchscript"))
    memory = ours = torch.zeros(2, policy.memory_size)
    for _ in range(5):
        x = example(policy, 2)[0]
        (action, memory), (expected, ours) = loaded(x, memory), play(policy, x, ours)
        torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)


def test_weights_alone(tmp_path):
    policy = policy_of("transformer")
    path = export(tmp_path / "weights", policy, "safetensors")
    with safe_open(path, "pt") as file:
        spec = PolicySpec(**json.loads(file.metadata()["policy"]))
        again = build_policy(spec, (9,))
        again.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118, it has no iterator
    x = example(policy)
    assert torch.equal(play(again, *x), play(policy, *x))


def test_the_normal_quantile_and_the_search_by_comparison():
    p = torch.cat([torch.logspace(-7, -1, 200, dtype=torch.float64), torch.linspace(0.1, 1 - 1e-7, 400).double()])
    np.testing.assert_allclose(NormalQuantile()(p), norm.ppf(p), rtol=1e-12, atol=1e-12)
    policy = policy_of("mlp, quantiles")
    graph = GraphQuantileNormalizer(policy.row_normalizer)
    x = example(policy)[0][None, :, :12]
    x[0, 0, :3] = torch.tensor([1e9, 0.0, -1e9])
    torch.testing.assert_close(graph(x), policy.row_normalizer(x), rtol=0, atol=1e-6)
    kept = policy.row_normalizer
    Exported(policy)
    assert policy.row_normalizer is kept  # exporting leaves the policy as it was


def test_what_differs_is_not_left_behind(tmp_path, monkeypatch):
    policy = policy_of("mlp")
    monkeypatch.setattr("drl_agents.compat.export._torchscript", lambda model, inputs: _zeros(inputs))
    with pytest.raises(InputError, match="the exported action differs by"):
        export(tmp_path / "model", policy, "torchscript")
    assert list(tmp_path.iterdir()) == []
    other = build_policy(policy.spec, (5,))
    with monkeypatch.context() as patch, pytest.raises(InputError, match="the exported action differs by"):
        patch.setattr("drl_agents.compat.export.build_policy", lambda spec, seeds: other)
        patch.setattr(other, "load_state_dict", lambda state: None)
        export(tmp_path / "model", policy, "safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="accepted are onnx, torchscript, safetensors"):
        export(tmp_path / "model", policy, "pickle")
    with pytest.raises(InputError, match="one is exported at a time"):
        Exported(build_policy(policy.spec, (0, 1)))


def _zeros(inputs: tuple[torch.Tensor, ...]) -> bytes:
    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * x[:, :3]

    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Zero(), inputs), file)
    return file.getvalue()


def test_the_script_exports_a_bundle(tmp_path, capsys):
    market = Market.from_bars(load_bars("synthetic", options={"n_bars": 200, "n_assets": 2}, seed=1))
    env = VectorizedCryptoEnvAlpaca(market, 2, episode_length=20, lookback=2, seed=0)
    agent = AgentPPO(PolicySpec.of(env, hidden=(8,)))
    agent.policy.fit_normalizer(env)
    save_bundle(tmp_path / "bundle", agent.policy, 0, env, "VectorizedCryptoEnvAlpaca", {})
    spec = importlib.util.spec_from_file_location("export_script", ROOT / "scripts" / "export.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            run(script.Options, script.main, [*arguments, "--logs", str(tmp_path / "logs")])
        return leaving.value.code or 0, *capsys.readouterr()

    for format, name in (("torchscript", "m.pt"), ("safetensors", "m.safetensors"), ("sb3", "m.zip")):
        status, out, err = call("--format", format, "--bundle", str(tmp_path / "bundle"), "--out", str(tmp_path / name))
        assert status == 0 and name in out and (tmp_path / name).stat().st_size > 0, err
        assert ("limited to 10 standard deviations" in err) == (format == "sb3")
    for arguments, message in (
        (("--format", "tflite"), "accepted are onnx, torchscript, safetensors, sb3"),
        (("--bundle", str(tmp_path / "none")), "no bundle there"),
        ((), "no champion yet"),
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1
