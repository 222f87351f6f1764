"""HTTP that waits politely and not for ever: a timeout on every request, bounded retries, Retry-After."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from environments.data.source import SourceUnavailable
from environments.errors import InputError

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0
ATTEMPTS = 6
LONGEST_WAIT = 120.0
RETRIED = frozenset({429, 500, 502, 503, 504})
LOOPBACK = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger(__name__)


class PatientSession(requests.Session):
    """A requests session that reads services with limits.

    Every request has a timeout: (connect, read) in seconds, the second for each wait for bytes. A GET that
    ends in 429, 500, 502, 503, 504, a timeout or a cut connection is asked again, `attempts` times in all.
    The wait before attempt k+1 is what the service asks for (Retry-After in seconds or as a date; on 429
    without it X-RateLimit-Reset, in Unix seconds), otherwise min(2^(k-1), 30) seconds times a random factor
    from 0.5 to 1. Other methods are sent once: whether a lost answer means a lost request cannot be told.
    Redirects are not followed, since headers with keys would go with them.

    https://docs.alpaca.markets/docs/market-data-faq, RFC 9110 section 10.2.3 (Retry-After).

    service: its name, for messages. sleep, clock: for tests.
    """

    def __init__(
        self,
        service: str,
        timeout: tuple[float, float] = (CONNECT_TIMEOUT, READ_TIMEOUT),
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.service, self.timeout, self.attempts = service, timeout, attempts
        self._sleep, self._clock = sleep, clock

    def request(self, method: str, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        """The answer, whatever its status if that is not one to retry.

        Raises:
            SourceUnavailable: no answer, a redirect, or a wait longer than two minutes asked for.
        """
        options = {"timeout": self.timeout, **options, "allow_redirects": False}
        attempts = self.attempts if method.upper() == "GET" else 1
        for attempt in range(1, attempts + 1):
            response, problem = None, ""
            try:
                response = super().request(method, url, **options)
            except requests.exceptions.Timeout:
                problem = f"no answer within {self.timeout[1]:g} s"
            except requests.exceptions.SSLError:
                raise SourceUnavailable(f"{self.service}: its certificate was not accepted") from None
            except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
                problem = "the connection failed or was cut"
            except requests.exceptions.RequestException as error:
                raise SourceUnavailable(f"{self.service}: {type(error).__name__}") from None
            if response is not None:
                if response.is_redirect:
                    raise SourceUnavailable(f"{self.service} answered with a redirect, which is not followed")
                if response.status_code not in RETRIED:
                    return response
                problem = f"HTTP {response.status_code}"
            if attempt == attempts:
                break
            wait = self._asked_wait(response)
            if wait is None:
                wait = min(2.0 ** (attempt - 1), 30.0) * random.uniform(0.5, 1.0)
            if wait > LONGEST_WAIT:
                raise SourceUnavailable(f"{self.service} asks to wait {wait:.0f} s ({problem}); ask again after that")
            logger.info("%s: %s; attempt %d of %d in %.1f s", self.service, problem, attempt + 1, attempts, wait)
            self._sleep(wait)
        raise SourceUnavailable(f"{self.service}: {problem}, {attempts} times; ask again later")

    def _asked_wait(self, response: requests.Response | None) -> float | None:
        """Seconds the service asks to wait; None where it asks for none that can be read."""
        if response is None:
            return None
        asked = response.headers.get("Retry-After", "").strip()
        if asked.isdigit():
            return float(asked)
        try:
            if asked:
                moment = parsedate_to_datetime(asked)
                moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
                return max(moment.timestamp() - self._clock(), 0.0)
            if response.status_code == 429 and "X-RateLimit-Reset" in response.headers:
                return max(float(response.headers["X-RateLimit-Reset"]) - self._clock(), 0.0)
        except (ValueError, TypeError, OverflowError):
            logger.debug("%s: an unreadable time to wait was ignored", self.service)
        return None


def require_https(url: str, name: str) -> str:
    """`url` without a trailing slash. Raises InputError unless it is https, or http to this machine itself.

    name: the variable or option it came from, for the message.
    """
    parts = urlsplit(url)
    private = parts.scheme == "http" and parts.hostname in LOOPBACK
    if private or (parts.scheme == "https" and parts.hostname):
        return url.rstrip("/")
    raise InputError(f"{name}: an https URL is accepted, since keys are sent to it")
