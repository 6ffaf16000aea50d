"""A running app in a thread of the test's process, and a client that says what it is told."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.number_format import QUICK
from vlmflow.app.engine import Engine, ModelChoice
from vlmflow.app.limits import Limits
from vlmflow.app.run import listening, server_of
from vlmflow.app.server import App


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class RunningApp:
    """An app that listens on a free port of this machine."""

    app: App
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send one request as the page would; headers are given with _ for -, "" leaves one out.

        A refusal comes before the body is read: closing then may cut off its own answer, which
        says nothing about the server, so that it is asked for again.
        """
        for _ in range(2):
            with suppress(ConnectionResetError):
                return self._sent(method, path, body, headers)
        return self._sent(method, path, body, headers)

    def _sent(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        given = {"Host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            given["Origin"] = self.url
        if isinstance(body, dict):
            given["Content-Type"] = "application/json"
            body = json.dumps(body).encode()
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            chunked = given.get("Transfer-Encoding") == "chunked"
            if body is not None and not chunked:
                given.setdefault("Content-Length", str(len(body)))
            for name, value in given.items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(body, encode_chunked=chunked)
            response = connection.getresponse()
            headers_of = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers_of, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.request("POST", path, {} if body is None else body, **headers)

    def watch(self, job: str) -> dict[str, Any]:
        """Follow a job to its end; returns the last thing it showed."""
        answer = self.get(f"/jobs/{job}")
        assert answer.status == 200, answer.text
        lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        return dict(json.loads(lines[-1].removeprefix("data: ")))

    def ask(self, question: str, *pictures: str, max_new_tokens: int = 16) -> dict[str, Any]:
        """Ask, wait, and return the answer's name beside what was shown last."""
        body = {"question": question, "pictures": pictures, "max_new_tokens": max_new_tokens}
        answer = self.post("/answers", body)
        if answer.status != 200:
            return {"status": "refused", "says": answer.json["error"]}
        started = answer.json
        return {**self.watch(started["job"]), "answer": started["answer"]}

    def work(self, path: str, body: Any = None) -> dict[str, Any]:
        """Start work on an answer and wait for its end."""
        return self.watch(self.post(path, body).json["job"])


@contextmanager
def running_app(
    model: str = "scenes-llava", limits: Limits | None = None, token: str | None = None
) -> Iterator[RunningApp]:
    """Run an app; its model is loaded when something asks for it."""
    limits = limits or Limits()
    listener = listening("127.0.0.1", 0)
    engine = Engine(ModelChoice(model, device="cpu", dtype=QUICK), limits)
    app = App(engine, limits)
    server = server_of(app, token)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield RunningApp(app, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        engine.worker.stop(30)
        listener.close()
