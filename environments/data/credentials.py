"""Keys and passwords: from the environment or a `.env` file, and kept out of everything that is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from environments.data.source import SourceUnavailable
from environments.errors import InputError

ENV_FILE = ".env"
HIDDEN = "***"
ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")
KEY_NAMES = (("APCA_API_KEY_ID", "ALPACA_API_KEY"), ("APCA_API_SECRET_KEY", "ALPACA_SECRET_KEY"))


class Secret:
    """A text that no log, format or JSON shows; `reveal()` gives it to the one call that needs it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return HIDDEN


def find_secret(*names: str, folder: str | Path = ".") -> Secret | None:
    """The first of the variables `names` that is set and not empty; None where none is.

    The environment is asked first, then the file `.env` in `folder`.
    """
    for values in (os.environ, read_env_file(Path(folder) / ENV_FILE)):
        for name in names:
            if values.get(name, "").strip():
                return Secret(values[name].strip())
    return None


def alpaca_keys(needed_for: str | None = None) -> tuple[Secret, Secret] | None:
    """Alpaca's key id and secret key, or None where neither is set.

    needed_for: what cannot be had without them; their absence is then an error.

    Raises:
        SourceUnavailable: no keys though needed, or one without the other; says which variables to set.
    """
    key, secret = (find_secret(*names) for names in KEY_NAMES)
    if key is not None and secret is not None:
        return key, secret
    if key is None and secret is None and needed_for is None:
        return None
    lacking = " and ".join(names[0] for names, found in zip(KEY_NAMES, (key, secret), strict=True) if found is None)
    purpose = f"{needed_for} needs" if needed_for else "Alpaca needs both or neither of"
    raise SourceUnavailable(f"{purpose} Alpaca's keys: set {lacking} in the environment or in a .env file here")


def read_env_file(path: Path) -> dict[str, str]:
    """The NAME=value lines of a file; {} where there is none.

    Blank lines and lines that begin with # are skipped, a leading `export` and quotes around the value are
    dropped, and nothing is expanded. Later lines win.

    Raises:
        InputError: the file is not readable, or a line is none of these; its number is told, not the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: not readable: {type(error).__name__}") from None
    values = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = ASSIGNMENT.fullmatch(line)
        if match is None:
            raise InputError(f"{path.name} line {number}: NAME=value is accepted")
        name, value = match.groups()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[name] = value
    return values


def redact(text: str, secrets: Iterable[Secret | None]) -> str:
    """`text` on one line, with every secret in it, and every part of a secret URL before its host, hidden."""
    hidden: set[str] = set()
    for secret in secrets:
        if secret is None:
            continue
        whole = secret.reveal()
        hidden.add(whole)
        if "://" in whole and "@" in whole:
            # Who parses a password that was not percent-encoded cuts it anywhere, so hide each piece.
            login = whole.partition("://")[2].rpartition("@")[0]
            password = login.partition(":")[2]
            hidden |= {login, password, unquote(password), *re.split(r"[:@/?#]", password)}
    # A piece of one or two characters is in every word; hiding it would only hide the message.
    for piece in sorted((piece for piece in hidden if len(piece) > 2), key=len, reverse=True):
        text = text.replace(piece, HIDDEN)
    return " ".join(text.split())
