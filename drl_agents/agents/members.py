"""Hyper-parameters that may differ between the members of a population: checked, and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from environments.errors import InputError

PerMember = float | Sequence[float]


def check_ranges(config: Any, ranges: Sequence[tuple[str, float, float]]) -> None:
    """Every number of the fields named lies between its bounds, which are accepted; None is left alone.

    Raises:
        InputError: one does not; the message names the field, the number and the bounds.
    """
    for name, low, high in ranges:
        value = getattr(config, name)
        for one in [value] if value is None or isinstance(value, int | float) else value:
            if one is not None and not low <= one <= high:
                raise InputError(f"{name}={one}: accepted are {low} to {high}")


def member_columns(config: Any, n_members: int, device: torch.device) -> dict[str, Tensor]:
    """{name: (P, 1) float32} of the fields of `config` typed `PerMember`; None becomes infinity, no limit.

    Raises:
        InputError: a sequence is of another length than P.
    """
    columns = {}
    for name in (item.name for item in fields(config) if "PerMember" in str(item.type)):
        value = getattr(config, name)
        if value is None or isinstance(value, int | float):
            values = [torch.inf if value is None else value]
        else:
            values = list(value)
        if len(values) not in (1, n_members):
            raise InputError(f"{name}: {len(values)} values for {n_members} members")
        column = torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1)
        columns[name] = column.expand(n_members, 1).contiguous()
    return columns
