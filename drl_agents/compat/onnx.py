"""ONNX: a policy's graph written by torch's exporter, and run by onnxruntime to see that it is the same."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from environments.errors import InputError

NEEDED = "pip install 'drl-agents[export]' (onnx, onnxruntime, onnxscript)"


def onnx_model(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The graph of `model` with a free batch size. Inputs: observation, and memory where there is one; outputs: action,
    memory.

    Raises:
        InputError: a package of the extra `export` is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: {NEEDED}") from error
    names = ("observation", "memory")[: len(inputs)]
    batch = torch.export.Dim("batch", min=1)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        _silent("torch.onnx", "onnx_ir", "onnxscript"),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            inputs,
            input_names=names,
            output_names=("action", "memory_after")[: len(inputs)],
            dynamic_shapes={name: {0: batch} for name in names},
            dynamo=True,
            verbose=False,
        )
    return program.model_proto.SerializeToString()


def onnx_runner(content: bytes) -> Callable[..., tuple[Tensor, ...]]:
    """A function of the graph's inputs, by onnxruntime.

    Raises:
        InputError: onnxruntime is missing, or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"onnxruntime is not installed: {NEEDED}") from error
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"onnxruntime refuses the model: {str(error).splitlines()[0]}") from error
    names = [item.name for item in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(out) for out in session.run(None, given))

    return run


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    """The exporter and what it optimises with tell of every step they take."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
