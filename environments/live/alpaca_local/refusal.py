"""How the venue says no: an HTTP status with Alpaca's own code and message."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """The venue refuses a request.

    status: of HTTP. code: Alpaca's, eight digits of which the first three are the status. fields: further ones of the
    body.
    """

    def __init__(self, status: int, code: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.fields = status, code, message, fields

    @property
    def body(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, **self.fields}


def unauthorized() -> Refused:
    """401: no keys, or wrong ones."""
    return Refused(401, 40110000, "request is not authorized")


def forbidden(message: str, **fields: Any) -> Refused:
    """403: the account lacks what the order needs, or the venue's rules forbid it."""
    return Refused(403, 40310000, message, **fields)


def not_found(message: str) -> Refused:
    """404: no such order, position or asset."""
    return Refused(404, 40410000, message)


def malformed(message: str, code: int = 42210000) -> Refused:
    """422: the request is not one the venue understands."""
    return Refused(422, code, message)
