"""The app's process: the page before the model, and nothing left of it, however it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.app_server import Answer

SOURCE = Path(__file__).resolve().parents[2] / "src"


@contextmanager
def started(folder: Path, *arguments: str):
    """The command in a process whose home, cache, temporary and working directory are `folder`."""
    own = {"HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder)}
    path = {"PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmflow", "app", "--port", "0", *arguments],
        cwd=folder, env=os.environ | own | path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A job in the background of a script starts with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        address = re.search(r"http://[\d.]+:(\d+)/(\S*)", line)
        assert address, line + (process.stderr.read() if process.poll() is not None else "")
        yield process, int(address[1]), address[2]
    finally:
        process.kill()
        process.communicate(timeout=30)


def request(port: int, method: str, path: str, body: dict | bytes | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


def until(port: int, job: str, status: str) -> None:
    """Watch a job until it has a status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/jobs/{job}")
    response = connection.getresponse()
    while f'"status": "{status}"'.encode() not in (line := response.readline()):
        assert line, "the job has ended"
    connection.close()


@pytest.mark.parametrize(
    ("kind", "phase"),
    [("SIGTERM", "waiting"), ("SIGTERM", "running"), ("SIGINT", "running"), ("SIGKILL", "running")],
)
def test_a_server_that_is_ended_in_mid_work_leaves_nothing(tmp_path, kind, phase):
    with started(tmp_path) as (process, port, _):
        picture = request(port, "GET", "/pictures/sample-0").body
        uploaded = json.loads(request(port, "POST", "/pictures", picture).body)["picture"]
        body = {"question": "What is there?", "pictures": [uploaded], "max_new_tokens": 64}
        job = json.loads(request(port, "POST", "/answers", body).body)["job"]
        until(port, job, phase)  # while it waits, the model is being loaded
        process.send_signal(getattr(signal, kind))
        out, error = process.communicate(timeout=60)
    assert process.returncode == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[kind]
    assert out == ""
    assert "Traceback" not in error
    # torch makes an empty directory of its own when it is imported.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(ConnectionRefusedError):
        request(port, "GET", "/")


def test_the_page_is_served_before_torch_is_imported(tmp_path):
    """Whether it is there within a second is then a matter of a few small modules."""
    code = """
import json, sys
from tests.support.app_server import running_app
files = ["/files/app.js", "/files/report.js", "/files/report.css"]
with running_app() as app:
    paths = ["/", "/about", "/pictures/sample-0", *files]
    statuses = [app.get(path).status for path in paths]
    heavy = ("torch", "transformers", "pandas", "matplotlib")
    loaded = [name for name in heavy if name in sys.modules]
print(json.dumps([statuses, loaded]))
"""
    root = SOURCE.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{root}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[200] * 6, []]


def test_beyond_this_machine_a_token_is_asked_for(tmp_path):
    with started(tmp_path, "--host", "0.0.0.0") as (process, port, query):
        token = re.fullmatch(r"\?token=([\w-]{32,})", query)[1]
        assert request(port, "GET", "/").status == 401
        assert request(port, "GET", f"/?token={token}").status == 303
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert "without encryption" in error


def test_a_taken_port_is_said_in_one_line(tmp_path):
    with started(tmp_path) as (_, port, _):
        second = subprocess.run(
            [sys.executable, "-m", "vlmflow", "app", "--port", str(port)],
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"port {port}" in line
    assert "--port 0" in line


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_extra_is_said_in_one_line(package):
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "{package}":
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["vlmflow", "app", "--port", "0"]
from vlmflow.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert package in line
    assert "pip install 'vlmflow[app]'" in line
