"""What the log says of each request, as text and as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from minisgl.utils.log import JsonFormatter, configure_logging
from support.api_server import ApiServer, api_server
from support.fake_workers import CACHED_TOKENS, PROMPT_TOKENS, wait_until

KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with api_server(api_key="k", max_body_size=2000) as server:
        yield server


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="minisgl")


def line_of(caplog: pytest.LogCaptureFixture, request_id: str) -> tuple[logging.LogRecord, dict[str, Any]]:
    """The one record of a request, and the JSON that it becomes."""

    def records() -> list[logging.LogRecord]:
        return [record for record in caplog.records if f"request {request_id}: " in record.getMessage()]

    wait_until(lambda: bool(records()))  # it is written after the answer
    (record,) = records()
    written = JsonFormatter("api").format(record)
    assert "\n" not in written
    return record, json.loads(written)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(server: ApiServer, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    name = f"answer-{stream}"
    body = {"model": "tiny", "prompt": "Par|is", "user": "eve", "stream": stream}
    answer = server.http.post("/v1/completions", json=body, headers=KEY | {"x-request-id": name})
    assert answer.headers["x-request-id"] == name
    record, fields = line_of(caplog, name)
    assert record.levelno == logging.INFO
    counts = f"{PROMPT_TOKENS} prompt tokens, {CACHED_TOKENS} of them cached, 3 out, first after 0."
    assert record.getMessage().startswith(f"request {name}: {counts}")
    assert record.getMessage().endswith(" s, stop, user 'eve'")
    assert fields.pop("message") == record.getMessage()
    assert 0 < fields.pop("ttft") <= fields.pop("duration") < 10
    assert fields.pop("time").startswith("20")
    assert fields == {
        "level": "info",
        "process": "api",
        "request_id": name,
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "client": "127.0.0.1",
        "prompt_tokens": PROMPT_TOKENS,
        "cached_tokens": CACHED_TOKENS,
        "completion_tokens": 3,
        "finish_reason": "stop",
        "user": "eve",
    }


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "a", "x": 1}, (400, "unknown_parameter", "x")),
        ("/v1/completions", {"model": "other", "prompt": "a"}, (404, "model_not_found", "model")),
        ("/v1/completions", {"model": "tiny", "prompt": "a" * 3000}, (413, "body_too_large", None)),
        ("/no/such%0Apath", {}, (404, "not_found", None)),
    ],
)
def test_a_refused_request(
    server: ApiServer,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, Any],
    expected: tuple[int, str, str | None],
) -> None:
    answer = server.http.post(path, json=body, headers=KEY)
    record, fields = line_of(caplog, answer.headers["x-request-id"])
    assert record.levelno == logging.INFO
    assert "\n" not in record.getMessage()
    assert (fields["status"], fields.get("error"), fields.get("param")) == expected
    assert (fields["path"], fields["client"], fields["method"]) == (path, "127.0.0.1", "POST")


def test_what_the_tokenizer_refuses_is_told_with_its_status(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "tiny", "prompt": "<reject>"}
    answer = server.http.post("/v1/completions", json=body, headers=KEY)
    record, fields = line_of(caplog, answer.headers["x-request-id"])
    assert record.getMessage().endswith("400 context_length_exceeded")
    assert (fields["status"], fields["completion_tokens"]) == (400, 0) and "ttft" not in fields


def test_strangers_and_probes_are_told_for_debugging_only(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/live", "/v1/models"):
        answer = server.http.get(path)
        record, _ = line_of(caplog, answer.headers["x-request-id"])
        assert record.levelno == logging.DEBUG
    assert answer.status_code == 401


def test_a_client_that_leaves_is_told(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": "tiny", "prompt": "a|<hang>", "stream": True}
    headers = KEY | {"x-request-id": "left"}
    with server.http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        next(answer.iter_lines())
    _, fields = line_of(caplog, "left")
    assert fields["finish_reason"] == "client disconnected"


def test_errors_and_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("scheduler-0", "warning", "json")
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            logging.getLogger("minisgl.x").exception("failed")
            error = sys.exc_info()[1]
        assert error is not None
        sys.excepthook(type(error), error, None)
        warnings.warn("old", stacklevel=1)
        logging.getLogger("minisgl").info("not heard")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:], sys.excepthook = handlers, hook
        root.setLevel(level)
    failed, uncaught, warned = map(json.loads, capsys.readouterr().err.splitlines())
    assert (failed["level"], failed["process"], failed["message"]) == ("error", "scheduler-0", "failed")
    assert "ValueError: first\nsecond" in failed["exception"]
    assert (uncaught["level"], uncaught["message"]) == ("critical", "uncaught exception")
    assert "old" in warned["message"]


def test_the_line_that_ends_a_worker() -> None:
    command = [sys.executable, "-m", "minisgl", "--model", "/no/model", "--log-format", "json"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    said = json.loads(line)
    assert said["level"] == "error" and said["message"].startswith("minisgl: error: model /no/model: ")
