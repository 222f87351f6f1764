"""The layers as one operation against the same layers in float64, and in the agents against the uncompiled ones."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents import compilation
from drl_agents.agents.registry import build_agent
from drl_agents.networks.native import build
from drl_agents.networks.native import mlp as native
from drl_agents.networks.native.mlp import mlp
from drl_agents.networks.policy import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")

# (members, samples, widths): whole tiles and panels and what is left of them, one layer, five, one sample.
SHAPES = [
    (1, 100, (7, 5, 3)),
    (3, 257, (37, 32, 48, 10)),
    (9, 96, (5, 17, 33, 1)),
    (1, 1, (3, 4, 2)),
    (1, 50, (9, 4)),
    (2, 130, (2, 3, 3, 3, 3, 1)),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def reference(x, weights, biases, relu, first):
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight if bias is None else x @ weight + bias
        if i == 0 and first is not None:
            x = x + first.repeat_interleave(x.shape[1] // first.shape[1], 1)
        if i < len(weights) - 1:
            x = torch.relu(x) if relu else torch.tanh(x)
    return x


def arguments(members, samples, widths, each=0, without_bias=False, seed=0):
    draws = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=draws)

    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    weights = [draw(members, a, b) / a**0.5 for a, b in pairs]
    biases = [draw(members, 1, b) for _, b in pairs]
    if without_bias:
        biases[0] = None
    first = draw(members, samples // each, widths[1]) if each else None
    return draw(members, samples, widths[0]), weights, biases, first


def check(members, samples, widths, relu=False, each=0, without_bias=False):
    x, weights, biases, first = arguments(members, samples, widths, each, without_bias)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases, first) if t is not None]
    out = mlp(x, weights, biases, relu, first)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, leaves, upstream)

    def double(t):
        return None if t is None else t.double()

    expected = reference(double(x), [w.double() for w in weights], [double(b) for b in biases], relu, double(first))
    gradients = torch.autograd.grad(expected, leaves, upstream.double())
    for one, other in zip((out, *found), (expected, *gradients), strict=True):
        assert_close(one, other.float(), rtol=1e-5, atol=3e-6 * float(other.detach().abs().max()))
    with torch.no_grad():  # nothing is kept for a gradient
        assert torch.equal(mlp(x, weights, biases, relu, first), out)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
def test_values_and_gradients_are_those_of_the_layers(shape, relu):
    check(*shape, relu=relu)


@pytest.mark.parametrize("each", [1, 3, 40])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sums_that_several_samples_share(each, threads):
    torch.set_num_threads(threads)
    check(1, 120 * 40, (9, 20, 16, 3), each=each, without_bias=True)


@pytest.mark.parametrize("lanes, rows", [(4, 8), (16, 12)])
def test_vectors_of_other_cpus(lanes, rows, monkeypatch):
    """Without the registers they are gone through in halves."""
    built = build.library("mlp", ("-O1", f"-DLANES={lanes}", f"-DTILE={rows}"))
    monkeypatch.setattr(native, "library", lambda name: built)
    for shape in SHAPES:
        check(*shape)
    check(2, 60, (9, 20, 16, 3), each=5)


@pytest.mark.parametrize("members", [1, 2, 5, 8])
def test_threads_change_the_rounding_of_sums_and_no_more(members):
    x, weights, biases, _ = arguments(members, 2_000, (33, 40, 40, 2))
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def result():
        out = mlp(x, weights, biases, False)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    torch.set_num_threads(1)
    alone = result()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        shared = result()
        for one, other in zip(shared, alone, strict=True):
            assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.detach().abs().max()))
        assert all(torch.equal(a, b) for a, b in zip(shared, result(), strict=True))  # but not from call to call


def test_a_member_alone_is_the_member_beside_others():
    x, weights, biases, _ = arguments(4, 300, (11, 20, 3))
    together = mlp(x, weights, biases, False)
    alone = mlp(x[2:3], [w[2:3] for w in weights], [b[2:3] for b in biases], False)
    assert torch.equal(together[2:3], alone)


def test_parts_of_larger_tensors():
    """Parameters are views of one flat vector, and of the first layer only the account's rows may be meant."""
    x, weights, biases, _ = arguments(3, 200, (12, 8, 4))
    flat = torch.cat([t.flatten(1) for pair in zip(weights, biases, strict=True) for t in pair], dim=1)
    pieces = iter(flat.split([t[0].numel() for pair in zip(weights, biases, strict=True) for t in pair], dim=1))
    views = [(next(pieces).view(w.shape), next(pieces).view(b.shape)) for w, b in zip(weights, biases, strict=True)]
    found = mlp(x[..., 5:], [views[0][0][:, 5:], views[1][0]], [b for _, b in views], True)
    assert_close(found, reference(x[..., 5:], [weights[0][:, 5:], weights[1]], biases, True, None))


@pytest.mark.parametrize("relu", [False, True], ids=["tanh", "relu"])
def test_what_is_not_a_number_stays_none(relu):
    """And stays where it is: neither other samples nor other members see it."""
    x, weights, biases, _ = arguments(3, 40, (6, 8, 8, 2))
    clean = mlp(x, weights, biases, relu)
    broken = x.clone()
    broken[0, 7, 3] = torch.nan
    weights[1] = weights[1].clone()
    weights[1][2, 4, 4] = torch.nan
    for t in weights:
        t.requires_grad_()
    out = mlp(broken, weights, biases, relu)
    lost = out.isnan().any(-1)
    assert lost[0].nonzero().flatten().tolist() == [7] and lost[2].all() and not lost[1].any()
    assert torch.equal(out[1], clean[1])
    expected = torch.autograd.grad(reference(broken, weights, biases, relu, None).sum(), weights)
    for one, other in zip(torch.autograd.grad(out.sum(), weights), expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and one[0].isnan().any() and one[1].isfinite().all()


# ---------------------------------------------------------------------------------------------- in the agents


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "momentum", "n_bars": 600, "n_assets": 3}, seed=1))


def trained(market: Market, name: str, mode: str, config: dict, **options):
    """Parameters, money and figures after two iterations of two members of 192 environments."""
    env = VectorizedCryptoEnvAlpaca(market, 384, n_members=2, episode_length=20, seed=[3, 5], **options)
    spec = PolicySpec.of(env, hidden=(24, 16), activation="relu" if name == "sac" else "tanh")
    agent = build_agent(name, spec, {"horizon_len": 8, **config, "compile": mode}, (3, 5))
    agent.policy.fit_normalizer(env)
    for _ in range(2):
        figures = agent.update(agent.explore_env(env, agent.config.horizon_len))
    return agent.policy.state_dict(), env.equity.clone(), figures


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("ppo", {"num_minibatches": 2}, {}),
        ("ppo", {"num_minibatches": 2, "target_kl": 1e-4, "critic_epochs": 1}, {"clock_groups": 8}),
        ("sac", {"batch_size": 160, "buffer_size": 6_000, "learning_starts": 500, "update_to_data": 0.003}, {}),
    ],
    ids=["ppo", "clocks", "sac"],
)
def test_agents_learn_the_same_with_it(name, config, options, market, monkeypatch):
    plain, calls = torch.compile, []
    # Traced as ever, and run operation by operation: the C++ of everything else is tested elsewhere.
    monkeypatch.setattr(
        torch, "compile", lambda f, **kept: plain(f, backend="aot_eager", fullgraph=True, dynamic=False)
    )
    monkeypatch.setattr(compilation, "why_not", lambda: None)
    monkeypatch.setattr(native, "_at_hand", lambda: True)
    call = native._call
    monkeypatch.setattr(native, "_call", lambda *given: calls.append(given) or call(*given))
    eager = trained(market, name, "off", config, **options)
    assert not calls
    compiled = trained(market, name, "on", config, **options)
    torch._dynamo.reset()
    assert len(calls) > 8  # at least: both networks forward and back in two minibatches of two iterations
    assert_close(compiled, eager, rtol=2e-3, atol=2e-4)


# -------------------------------------------------------------------------------------------------- compiling it


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Nothing is known of what was compiled before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def test_it_is_compiled_once_for_all_processes(fresh, monkeypatch):
    assert build.library("mlp") is not None
    (built,) = build.cache_folder().iterdir()
    assert built.suffix == ".so" and build.cache_folder() == fresh / "cache" / "drl_agents"
    written = built.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library("mlp") is not None
    assert [*build.cache_folder().iterdir()] == [built] and built.stat().st_mtime_ns == written


def test_without_a_compiler_torch_is_used(fresh, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    caplog.set_level("INFO")
    assert build.library("mlp") is None
    assert "mlp.cpp: no C++ compiler (c++, g++ or clang++) was found, torch's own operations are used" in caplog.text


def fake_compiler(folder, monkeypatch, script: str) -> None:
    (folder / "c++").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_compiler_that_fails_is_told_and_leaves_nothing(fresh, monkeypatch, caplog):
    fake_compiler(fresh, monkeypatch, "echo no headers here >&2; exit 1")
    assert build.library("mlp") is None
    assert "mlp.cpp: not compiled, torch's own operations are used: no headers here" in caplog.text
    assert not build.cache_folder().exists() or not [*build.cache_folder().iterdir()]


def test_a_folder_that_cannot_be_written_is_no_end(fresh, monkeypatch, caplog):
    (fresh / "cache").write_text("a file where the folder would be")
    assert build.library("mlp") is None and "torch's own operations are used" in caplog.text


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 127, 4), torch.zeros(1, 128, 4, dtype=torch.float64), torch.zeros(1, 128, 4, device="meta")],
    ids=["few samples", "float64", "not on the CPU"],
)
def test_where_it_is_not_used(x, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(native, "_at_hand", lambda: True)
    assert native.usable(torch.zeros(1, 128, 4), 4) and not native.usable(x, 4)
    assert not native.usable(torch.zeros(1, 128, 4), 5_000)
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.usable(torch.zeros(1, 128, 4), 4)
