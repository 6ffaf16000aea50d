"""What reaches the app: its own page, from this machine, in pieces that are not too large."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from tests.support.app_server import running_app
from vlmflow.app.limits import Limits

MIB = 2**20
SMALL = Limits(picture_bytes=MIB, body_bytes=MIB // 4, body_seconds=1.0)


@pytest.fixture(scope="module")
def app():
    with running_app(limits=SMALL) as running:
        yield running


@pytest.mark.parametrize(
    "path", ["/", "/answers/anything", "/files/app.js", "/about", "/missing", "/pictures/x"]
)
def test_every_answer_carries_the_policy(app, path):
    headers = app.get(path).headers
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    assert set(rules["img-src"].split()) <= {"'self'", "data:", "blob:"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


def test_the_page_names_no_outside_source_and_holds_no_script(app):
    page = app.get("/").text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) > 5
    assert all(address.startswith(("/files/", "#", "data:,")) for address in addresses)
    assert page.count("<script") == len(
        re.findall('<script src="/files/[^"]+" defer></script>', page)
    )
    assert not re.search(r"\son\w+=", page)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.0.0.1:1", "localhost:7860", "[::1]:80"]
)
def test_addresses_and_localhost_are_answered(app, host):
    assert app.get("/", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("", "localhost@evil.example", "[::1", "0x7f.1", "rebind.network:80", "LOCALHOST.", "a b"),
    ],
)
def test_other_names_are_refused(app, host):
    """A site can make its own name point to this machine, and its pages would then be at home."""
    answer = app.get("/about", Host=host)
    assert answer.status in (400, 421)
    assert b"scenes" not in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/answers", "/pictures", "/model", "/jobs/x/cancel", "/missing"])
def test_what_other_pages_post_is_refused(app, path, headers):
    answer = app.post(path, **headers)
    assert answer.status == 403
    assert "own page" in answer.json["error"]


def test_its_own_page_may_post(app):
    assert app.post("/jobs/x/cancel", Sec_Fetch_Site="same-origin").status == 404
    assert app.post("/jobs/x/cancel").status == 404


def test_a_body_is_refused_by_what_it_says_and_by_what_it_is(app):
    for path, limit in (("/pictures", MIB), ("/answers", MIB // 4)):
        assert app.request("POST", path, b"x", Content_Length=str(limit + 1)).status == 413
        for length in ("9" * 40, "-1", "1e3", "\u00b2"):
            assert app.request("POST", path, b"", Content_Length=length).status in (400, 413)
        # Nothing is said about its length here.
        pieces = iter([b"x" * 65536] * (limit // 65536 + 2))
        try:
            chunked = {"Transfer_Encoding": "chunked", "Content_Type": "application/json"}
            status = app.request("POST", path, pieces, **chunked).status
        except (BrokenPipeError, ConnectionResetError):  # it hung up on what was too long
            status = 413
        assert status == 413
    assert app.get("/about").status == 200


def test_a_body_that_does_not_come_is_not_waited_for(app):
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as connection:
        head = f"POST /pictures HTTP/1.1\r\nHost: 127.0.0.1:{app.port}\r\nOrigin: {app.url}\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\nabc".encode())
        assert b" 408 " in connection.recv(4096)


@pytest.mark.parametrize(
    "path",
    [
        *("/files/../server.py", "/files/..%2fserver.py", "/files/%2e%2e/server.py", "/files/"),
        *("/files//etc/passwd", "/files/app.js/..", "/files/....//....//etc/passwd", "/../../etc"),
        *("/files/index.html", "/files/app.js%00.png", "/files/d3.LICENSE", "/answers/../about/x"),
        *("/pictures/../files/app.js", "/pictures/sample-9", "/pictures/sample-00", "/.git/config"),
        *("//evil.example/x", "/answers/%2e%2e/page", "/jobs/..%5c..", "/files/C:%5cboot.ini"),
    ],
)
def test_only_its_own_files_are_served(app, path):
    answer = app.get(path)
    assert answer.status in (400, 404)
    assert set(answer.json) == {"error"}
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(app, method):
    assert app.request(method, "/about").status in (400, 403, 404, 405)


def test_a_web_socket_is_refused(app):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    answer = app.get("/about", Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==", **upgrade)
    assert answer.status != 101


@pytest.fixture(scope="module")
def open_app():
    """An app as it listens beyond this machine."""
    with running_app(token="the-token") as running:
        yield running


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/about", {}),
        ("/files/app.js", {}),
        ("/?token=", {}),
        ("/?token=the-tokem", {}),
        ("/?token=%C3%A9", {}),
        ("/", {"Cookie": "vlmflow_token=x"}),
        ("/", {"Cookie": "vlmflow_token=the-token-"}),
        ("/", {"Cookie": "\u00ff;;=;vlmflow_token"}),
        ("/", {"Authorization": "Bearer the-token"}),
    ],
    ids=str,
)
def test_without_its_token_an_open_app_answers_nothing(open_app, path, headers):
    answer = open_app.get(path, **headers)
    assert answer.status == 401
    assert set(answer.json) == {"error"}


def test_the_token_moves_from_the_address_into_a_cookie(open_app):
    answer = open_app.get("/answers/x?token=the-token&a=b")
    assert answer.status == 303
    assert answer.headers["location"] == "/answers/x?a=b"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert open_app.get("/about", Cookie=f"a=b; {cookie.split(';')[0]}").status == 200
    # The way to another machine is not taken.
    away = open_app.get("//evil.example/?token=the-token").headers["location"]
    assert away == "/evil.example/"
    assert (
        open_app.post("/model", Cookie="vlmflow_token=the-token", Origin="http://a").status == 403
    )


def test_links_expire():
    with running_app(limits=Limits(kept_seconds=0.3)) as running:
        picture = running.get("/pictures/sample-0").body
        name = running.request("POST", "/pictures", picture).json["picture"]
        assert running.get(f"/pictures/{name}").status == 200
        time.sleep(0.5)
        answer = running.get(f"/pictures/{name}")
        assert answer.status == 404
        assert "not kept any more" in answer.json["error"]


def test_the_documentation_states_the_limits():
    limits = Limits()
    text = (Path(__file__).parents[2] / "docs" / "app.md").read_text("utf-8")
    for number in (
        f"{limits.picture_bytes // MIB} MiB and {limits.picture_pixels // 10**6} million pixels",
        f"questions of {limits.question_characters:,} characters",
        f"answers of {limits.new_tokens} tokens, {limits.waiting} pieces of work",
        f"{limits.kept_bytes // MIB} MiB at most",
        f"given up after {limits.unwatched_seconds:.0f} seconds",
    ):
        assert number in text
    assert (limits.kept_seconds, limits.pictures) == (4 * 3600, 4)  # in words there
