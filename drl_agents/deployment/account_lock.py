"""One trader at a time on an account, whatever folder its files are in: two would take each other's fills for errors.

Traders on one machine exclude each other by a lock that goes with the process. One on another machine shows by its
orders, see `reconcile.look_around`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from environments.errors import InputError


def lock_file(venue: str, key_id: str) -> Path:
    """The lock of the account that `key_id` opens at `venue` (a URL): the same for all traders of a user."""
    digest = hashlib.sha256(f"{venue}\n{key_id}".encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"drl_agents-{os.getuid()}" / f"account-{digest}.lock"


@contextmanager
def sole_trader(venue: str, key_id: str, folder: str | Path) -> Iterator[None]:
    """Hold the account's lock. folder: of the trader, told to others who ask for the account.

    Raises:
        InputError: another process, or this one, trades the account.
    """
    path = lock_file(venue, key_id)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 4_096, 0).decode(errors="replace").strip()
            raise InputError(
                f"this account is traded already, by {other or 'another process'}: stop it, or use another account's "
                "keys"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}, {Path(folder).resolve()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)
