"""A PostgreSQL of our own for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Unavailable(RuntimeError):
    """There is no PostgreSQL here, or it cannot run here."""


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server that listens on a socket in a folder of its own, for as long as the block lasts.

    PostgreSQL refuses to run as root, so root starts it as `nobody`.

    Raises:
        Unavailable: neither pgserver nor initdb is installed, or they cannot run here.
    """
    # Not pytest's temporary folder: the path of a socket may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    as_user = {"user": "nobody"} if os.geteuid() == 0 else {}
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        tools = _tools(folder)

        def tool(name: str, *arguments: str) -> int:
            command = [str(tools / name), "-D", str(folder / "db"), *arguments]
            return subprocess.run(command, cwd=folder, timeout=60, **silent, **as_user).returncode

        try:
            if as_user:
                shutil.chown(folder, as_user["user"])
            made = tool("initdb", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-U", "postgres")
        except (OSError, LookupError) as error:
            raise Unavailable(f"initdb cannot run here: {error}") from error
        if made or tool("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-F -h '' -k {folder}", "start"):
            raise Unavailable("PostgreSQL cannot start here")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            tool("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tools(folder: Path) -> Path:
    """The folder of initdb and pg_ctl: pgserver's (its own start would add a user to the system), or the system's."""
    found = importlib.util.find_spec("pgserver")
    if found is not None and found.origin is not None:
        package = Path(found.origin).parent
        if os.geteuid() == 0:
            # A virtual environment of root's may be closed to the user the server runs as.
            for part in (package, package.with_name("pgserver.libs")):
                shutil.copytree(part, folder / part.name)
            package = folder / package.name
        return package / "pginstall" / "bin"
    system = shutil.which("initdb")
    if system is None:
        raise Unavailable("neither pgserver nor initdb is installed")
    return Path(system).resolve().parent
