"""`helm test`: the pod's own command, against an API server and an operator that are well or ill."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.helm import MATRIX, NAMESPACE, assert_bound, granted, is_hook, of_kind, one, render


class Answers(ThreadingHTTPServer):
    """An API server that lists services to who has the token, and an operator's health, in one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.kind = "MiniSGLangServiceList"
        self.health = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(self.server.health, {})
        elif self.headers["Authorization"] != "Bearer secret":
            self._answer(403, {"message": "forbidden"})
        else:
            self._answer(200, {"kind": self.server.kind})

    def _answer(self, status: int, body: dict[str, str]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def answers() -> Iterator[Answers]:
    with Answers() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_helm_test(answers: Answers, credentials: Path) -> subprocess.CompletedProcess[str]:
    """The command of the rendered test pod, against other URLs."""
    (pod,) = of_kind(render({}), "Pod")
    (container,) = pod["spec"]["containers"]
    python, option, script, *_ = container["command"]
    assert (python, option) == ("python", "-c")
    urls = [f"{answers.url}/apis/list", f"{answers.url}/healthz"]
    command = [sys.executable, "-c", script, *urls, str(credentials), "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret")
    return tmp_path


def test_helm_test_passes(answers: Answers, credentials: Path) -> None:
    done = run_helm_test(answers, credentials)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the operator is well" in done.stdout


def test_helm_test_fails_when_the_operator_is_ill(answers: Answers, credentials: Path) -> None:
    answers.health = 500
    done = run_helm_test(answers, credentials)
    assert done.returncode == 1
    assert "/healthz answers 500" in done.stdout


def test_helm_test_fails_without_the_kind(answers: Answers, credentials: Path) -> None:
    answers.kind = "Status"
    done = run_helm_test(answers, credentials)
    assert done.returncode == 1
    assert "is a Status" in done.stdout


def test_helm_test_fails_without_the_right(answers: Answers, credentials: Path) -> None:
    (credentials / "token").write_text("other")
    done = run_helm_test(answers, credentials)
    assert done.returncode == 1
    assert "answers 403" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(("values", "namespace"), [({}, NAMESPACE), (MATRIX["namespaced"], "team-a")])
def test_helm_test_asks_what_it_may(values: dict[str, Any], namespace: str) -> None:
    hooks = [document for document in render(values) if is_hook(document)]
    assert sorted(hook["kind"] for hook in hooks) == ["Pod", "Role", "RoleBinding", "ServiceAccount"]
    (pod,), (role,), (binding,) = (of_kind(hooks, kind) for kind in ("Pod", "Role", "RoleBinding"))
    assert granted(role) == {("serving.minisglang.io/minisglangservices", "list")}
    assert role["metadata"]["namespace"] == namespace
    assert_bound(binding, role, pod["spec"]["serviceAccountName"])
    (container,) = pod["spec"]["containers"]
    list_url, health_url = container["command"][3:5]
    assert list_url.endswith(f"/apis/serving.minisglang.io/v1alpha1/namespaces/{namespace}/minisglangservices")
    service = one(render(values), "Service")
    assert health_url == f"http://{service['metadata']['name']}.{NAMESPACE}.svc:8080/healthz"
