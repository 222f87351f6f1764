"""C++ beside the Python, compiled at the first use for the very CPU it runs on and kept for the next process."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC")
_LIMIT_S = 120


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/drl_agents, or ~/.cache/drl_agents."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drl_agents"


@functools.cache
def library(name: str, options: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The functions of `name`.cpp in this folder; None, with the reason in the log, where they cannot be compiled.

    Args:
        options: a compiler's, beside those for speed.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        logger.info("%s: no C++ compiler (c++, g++ or clang++) was found, torch's own operations are used", source.name)
        return None
    try:
        return ctypes.CDLL(str(_compiled([compiler, *_FLAGS, *options], source)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
    logger.warning("%s: not compiled, torch's own operations are used: %s", source.name, reason.strip()[-500:])
    return None


def _compiled(command: Sequence[str], source: Path) -> Path:
    # What the compiler says of itself and of this CPU: a home may be shared by machines that differ.
    said = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    texts = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*texts, " ".join(command).encode(), said.encode()])).hexdigest()
    folder = cache_folder()
    built = folder / f"{source.stem}-{key[:16]}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Under a name of its own first: whoever finds the file finds all of it.
        handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        try:
            _run([*command, "-o", name, str(source)])
            os.replace(name, built)
        finally:
            Path(name).unlink(missing_ok=True)
    return built


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S).stdout
