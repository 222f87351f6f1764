"""The compiler's own rules; that compiled and uncompiled agree is tested with the agents."""

from __future__ import annotations

import torch
import torch._dynamo

from drl_agents.agents import compilation
from drl_agents.agents.compilation import Compiler


def test_more_shapes_than_are_kept_are_compiled_all_the_same(monkeypatch, caplog):
    """A long study comes to more than `MAX_VARIANTS`; torch would end it there."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: plain(function, backend="eager", **options))
    monkeypatch.setattr(compilation, "MAX_VARIANTS", 2)
    monkeypatch.setattr(compilation, "why_not", lambda: None)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x + x

    caplog.set_level("INFO")
    # By its own means: after monkeypatch the setting no longer exists for the tests that follow.
    with torch._dynamo.config.patch(recompile_limit=1):
        for sizes in ((3, 4, 5, 6), (3, 5)):  # by two agents
            compiler = Compiler("on")
            for size in sizes:
                x = torch.arange(size)
                assert torch.equal(compiler(doubled)(x), 2 * x)
    assert "2 variants of" in caplog.text
    torch._dynamo.reset()
