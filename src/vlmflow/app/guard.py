"""What is checked of every request before anything reads it, and said with every answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "vlmflow_token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Content policy: charts are styled by attributes, and pictures are drawn from data."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class RefusedError(Exception):
    """A request that is not answered, with its status code and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Guard:
    """An ASGI application around another one, which lets only proper requests through.

    Parameters
    ----------
    inner : ASGI application
        What answers.
    token : str, optional
        Without it nothing is answered; None where only this machine can connect.
    body_bytes : callable
        Gives, for a path, how long the body of a request may be.
    body_seconds : float
        How long it may take to come.
    """

    inner: Application
    token: str | None
    body_bytes: Callable[[str], int]
    body_seconds: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over a web socket
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.encode() not in given
                    ),
                ]
            await send(message)

        try:
            headers = _headers(scope)
            _check_host(headers)
            if await self._admitted(scope, headers, guarded_send):
                return
            if scope["method"] not in ("GET", "HEAD"):
                _check_origin(headers)
            limit = self.body_bytes(scope["path"])
            _check_length(headers, limit)
            await self.inner(scope, self._bounded(receive, limit), guarded_send)
        except RefusedError as refusal:
            if started:
                raise
            await _answer(guarded_send, refusal.status, refusal.reason)

    async def _admitted(self, scope: Scope, headers: dict[str, str], send: Send) -> bool:
        """Check the token; whether the request is answered by that alone."""
        if self.token is None:
            return False
        query = parse_qs(scope["query_string"].decode("latin-1"))
        offered = query.pop("token", [""])[0]
        if offered and hmac.compare_digest(offered.encode(), self.token.encode()):
            # Into a cookie, and out of the address bar.
            rest = urlencode(query, doseq=True)
            # One slash only: two would lead to another machine.
            place = "/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else "")
            cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Lax"
            start = {"type": "http.response.start", "status": 303}
            encoded = place.encode("ascii", "ignore")
            start["headers"] = [(b"location", encoded), (b"set-cookie", cookie.encode())]
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return True
        if hmac.compare_digest(_cookie(headers).encode(), self.token.encode()):
            return False
        raise RefusedError(401, "this app wants its token; open the address that it printed")

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        """Stop reading a body that turns out longer or slower than it may be."""
        length, end = 0, time.monotonic() + self.body_seconds
        whole = False

        async def bounded() -> Message:
            nonlocal length, whole
            if whole:  # what comes now is only whether the other side is still there
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                raise RefusedError(408, "the request took too long to arrive; try again") from None
            length += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if length > limit:
                raise _too_long(limit)
            return message

        return bounded


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can connect to an address."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in headers and name in ("host", "origin", "content-length", "sec-fetch-site"):
            raise RefusedError(400, f"the request has two headers {name}")
        headers[name] = f"{headers[name]}; {value}" if name in headers else value
    return headers


def _check_host(headers: dict[str, str]) -> None:
    """Refuse a name that another site made point here: pages ask by an address or localhost."""
    host = headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        if name != "localhost":
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise RefusedError(
            421, "this app answers to localhost and to IP addresses only; open the one it printed"
        ) from None


def _check_origin(headers: dict[str, str]) -> None:
    """Refuse what a page of another site sends: any page may post to this machine."""
    origin, host = headers.get("origin", ""), headers["host"]
    if origin not in (f"http://{host}", f"https://{host}"):
        raise RefusedError(403, "only the app's own page may ask for this")
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise RefusedError(403, "only the app's own page may ask for this")


def _check_length(headers: dict[str, str], limit: int) -> None:
    declared = headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise RefusedError(400, "the length of the request is not a number")
    if len(declared) > 15 or int(declared) > limit:
        raise _too_long(limit)


def _too_long(limit: int) -> RefusedError:
    return RefusedError(413, f"that is more than {limit / 2**20:.0f} MiB, the most this app takes")


def _cookie(headers: dict[str, str]) -> str:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    start = {"type": "http.response.start", "status": status}
    start["headers"] = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send(start)
    await send({"type": "http.response.body", "body": body})
