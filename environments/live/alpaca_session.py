"""How Alpaca is asked: every request with a timeout, reads again when they fail, writes once.

A write that got no answer may have been done; only its sender can find out, so nothing here repeats it. A read that
fails to the end raises: no answer is never an empty one.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import requests
from alpaca.common.exceptions import APIError

from environments.data.credentials import Secret, redact
from environments.data.http import LOOPBACK, require_https
from environments.errors import InputError
from environments.live.broker import BrokerUnavailable

ALPACA, PAPER_HOST = "alpaca.markets", "paper-api.alpaca.markets"
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 10.0
ATTEMPTS = 6
FIRST_WAIT, FIRST_PAUSE, LONGEST_WAIT = 0.05, 0.5, 5.0
TOO_MANY = 429

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TimedSession(requests.Session):
    """A requests session in which every request has a timeout (connect, read), in seconds."""

    def __init__(self, timeout: tuple[float, float]) -> None:
        super().__init__()
        self.timeout = timeout

    def request(self, method: str, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, url, **{"timeout": self.timeout, **options})


def paper_url(url: str | None) -> str | None:
    """`url` if orders may be sent there; None stays None (Alpaca's paper venue).

    Of Alpaca's hosts one is accepted, however the others are spelt: what is judged is the host that requests would
    connect to, with its percent-encoding undone and without the dot that a full domain name may end with.

    Raises:
        InputError: it is a host of Alpaca's that is not for paper accounts, none at all, or keys would go there in the
            clear.
    """
    if url is None:
        return None
    url = require_https(url, "the broker's URL")
    try:
        sent_to = requests.Request("GET", url).prepare().url
    except (requests.exceptions.RequestException, ValueError) as error:
        raise InputError(f"the broker's URL: {error}") from None
    host = unquote(urlsplit(sent_to).hostname or "").rstrip(".").lower()
    if host == PAPER_HOST or (host and not f".{host}".endswith(f".{ALPACA}")):
        return url
    raise InputError(f"{host!r} may trade live money: only paper accounts are traded here, on {PAPER_HOST}")


def prepare(client: Any, url: str | None, timeout: tuple[float, float] = (CONNECT_TIMEOUT, READ_TIMEOUT)) -> Any:
    """An alpaca-py client with timeouts and without retries of its own.

    alpaca-py 0.44 sets no timeout, sends a POST that met 429 or 504 again, and has no public way to be told otherwise.
    """
    client._session = TimedSession(timeout)
    client._retry = 0
    if url is not None and urlsplit(url).hostname in LOOPBACK:
        client._session.trust_env = False  # a proxy has no business between us and ourselves
    return client


class Unreadable(ValueError):
    """An answer that is not what it should be: a field is missing, or is no number."""


def status_of(error: APIError) -> int:
    """The HTTP status of an answer; 0 where there is none."""
    return error.status_code or 0


def told(error: APIError) -> tuple[int, str]:
    """Alpaca's own (code, message) of an error, the status and the beginning of the text where it has none."""
    try:
        body = json.loads(str(error))
        return int(body["code"]), str(body["message"])
    except (ValueError, KeyError, TypeError):
        return status_of(error), str(error)[:160]


def asked_wait(error: APIError) -> float | None:
    """Seconds that a 429 asks to wait; None where it does not say."""
    response = error.response
    text = "" if response is None else response.headers.get("Retry-After", "").strip()
    return float(text) if text.isdigit() else None


def read(
    what: str,
    ask: Callable[[], T],
    secrets: Iterable[Secret],
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """`ask()`, again where it fails: after timeouts, cut connections, 429, 5xx and answers that cannot be read.

    what: for messages. The waits double from `FIRST_WAIT`, after 429 from `FIRST_PAUSE`, to `LONGEST_WAIT`, each
    between half of it and all, so that clients refused together do not come back together; or they are what the venue
    asks for (a 429's Retry-After), `LONGEST_WAIT` at most.

    Raises:
        InputError: the keys are refused.
        APIError: any other refusal; what it means is the caller's to say.
        BrokerUnavailable: it failed to the end.
    """
    problem = ""
    for attempt in range(attempts):
        wait, first = None, FIRST_WAIT
        try:
            return ask()
        except APIError as error:
            status = status_of(error)
            if status in (401, 403):
                reason = redact(str(error), secrets)[:120]
                raise InputError(f"Alpaca refused the keys (HTTP {status}: {reason}): check APCA_API_KEY_ID and "
                                 "APCA_API_SECRET_KEY; they must be a paper account's") from None  # fmt: skip
            if status != TOO_MANY and status < 500:
                raise
            problem = f"HTTP {status}"
            if status == TOO_MANY:
                wait, first = asked_wait(error), FIRST_PAUSE
        except requests.exceptions.RequestException as error:
            problem = type(error).__name__
        except (Unreadable, KeyError, TypeError, ValueError) as error:
            problem = f"an answer that cannot be read ({type(error).__name__}: {redact(str(error), secrets)[:80]})"
        if attempt < attempts - 1:
            logger.info("%s: %s, asked again", what, problem)
            drawn = min(first * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            sleep(drawn if wait is None else min(wait, LONGEST_WAIT))
    raise BrokerUnavailable(f"{what}: {problem}, {attempts} times")
