"""Atomic writes."""

from __future__ import annotations

import os
import stat

import pytest

from environments.files import write_atomic, write_json


def test_a_file_can_be_read_by_whom_any_new_file_can(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "atomic", "x")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (tmp_path / "a.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]
