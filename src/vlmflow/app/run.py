"""Starting the app's server, and stopping it so that nothing of it stays."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from vlmflow.app.engine import Engine, ModelChoice
from vlmflow.app.guard import is_loopback
from vlmflow.app.limits import Limits
from vlmflow.app.server import App
from vlmflow.errors import InputError


def run_app(
    choice: ModelChoice,
    host: str,
    port: int,
    *,
    limits: Limits,
    said: Callable[[str], None],
    prepare: Callable[[], None],
) -> None:
    """Serve the app until the process is told to end.

    Everything is kept in memory: however the process ends, no file is left.

    Parameters
    ----------
    choice : ModelChoice
        The model.
    host, port : str, int
        Where to listen: an IP address of this machine, or localhost; port 0: any that is free.
    limits : Limits
        What is taken and kept.
    said : callable
        Is given the address to open, once the app listens.
    prepare : callable
        Called before the model is loaded, in another thread.

    Raises
    ------
    InputError
        If nothing can listen there.
    """
    listener = listening(host, port)
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    engine = Engine(choice, limits, prepare)
    said(_address(host, listener.getsockname()[1], token))
    try:
        server_of(App(engine, limits), token).run(sockets=[listener])
    finally:
        listener.close()
        if not engine.worker.stop():
            _end_at_once()


def _end_at_once() -> None:
    """End the process with the code that it is ending with, but without taking Python apart.

    Native code that goes on in another thread (importing torch takes seconds, a large matrix may)
    would crash on the way. Nothing is lost: there are no files.
    """
    ending = sys.exc_info()[1]
    code: object = 0 if ending is None else 1
    if isinstance(ending, KeyboardInterrupt):
        code = 130
    elif isinstance(ending, SystemExit):
        code = ending.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def server_of(app: App, token: str | None) -> uvicorn.Server:
    """Return a server of an app; without a token only this machine may reach it."""
    config = uvicorn.Config(
        app.application(token),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=15,
        # Streams of jobs end with the process, not the process with them.
        timeout_graceful_shutdown=1,
        limit_concurrency=200,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return uvicorn.Server(config)


def _check_host(host: str) -> None:
    """Refuse a host that is neither localhost nor an IP address; names are not looked up."""
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError as error:
        raise InputError(
            f"--host {host!r} is not an IP address; give 127.0.0.1 for this machine alone, 0.0.0.0 "
            "for all that can reach it, or another address of it"
        ) from error


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    InputError
        If the host is no address of this machine, or the port is taken.
    """
    _check_host(host)
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"--host {host} cannot be used here ({error.strerror})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port, or "
            "--port 0 for any that is free"
        ) from error
    return listener


def _address(host: str, port: int, token: str | None) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
