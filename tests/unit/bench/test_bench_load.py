"""The load generator against a small server that answers as it is told, and what is made of its answers."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from bench import load
from bench.load import Answer, Load, Target
from bench.online import Capacity, Point, Shape, predict, to_point

TOKENS = 5
GAP = 0.05


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        match body["prompt"]:
            case [1]:
                self.send_error(429)
            case [2]:  # hangs up in the middle
                self._begin()
                self._event({"choices": [{"text": "a", "finish_reason": None}], "usage": None})
                self.close_connection = True
            case [3]:
                time.sleep(20)
            case _:
                self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        details = {"cached_tokens": 2}
        usage = {"prompt_tokens": 4, "completion_tokens": body["max_tokens"], "prompt_tokens_details": details}
        if not body.get("stream"):
            text = json.dumps({"choices": [{"text": "abc", "finish_reason": "length"}], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self._begin()
        for index in range(body["max_tokens"]):
            time.sleep(GAP)
            last = index == body["max_tokens"] - 1
            self._event({"choices": [{"text": "é", "finish_reason": "length" if last else None}], "usage": None})
        time.sleep(20 * GAP)  # must not count
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Target(f"http://127.0.0.1:{server.server_port}/v1", "m", key="")
    server.shutdown()


def body(target: Target, prompt: list[int], *, stream: bool = True) -> str:
    return target.completion(prompt, TOKENS, **(load.STREAMED if stream else {}))


def test_times_of_a_stream_are_those_of_its_tokens(target: Target) -> None:
    due = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    seen = load.run(target, [(time, body(target, [9])) for time in due], clients=2)
    assert [answer.due for answer in seen.answers] == due
    for answer in seen.answers:
        assert not answer.error
        assert (answer.tokens, answer.prompt_tokens, answer.cached_tokens, answer.events) == (
            TOKENS,
            4,
            2,
            TOKENS + 1,
        )
        assert -0.01 < answer.sent - answer.due < 0.5, "a loop's clock is coarse"
        assert GAP * 0.9 <= answer.time_to_first_token < GAP + 0.5
        assert GAP * 0.8 < answer.time_per_output_token < GAP * 4, "without the pause before the usage"
        assert GAP * 0.8 < answer.longest_gap < GAP * 15
    assert 0 < seen.client_cpu < 1


def test_arrivals_do_not_wait_for_answers(target: Target) -> None:
    """All of them overlap: one after the other they would take far longer."""
    seen = load.run(target, [(0.02 * n, body(target, [9])) for n in range(50)])
    assert not any(answer.error for answer in seen.answers)
    assert max(answer.last for answer in seen.answers) < 0.25 * 50 * GAP * TOKENS


def test_a_whole_answer_has_its_usage(target: Target) -> None:
    (answer,) = load.run(target, [(0.0, body(target, [9], stream=False))]).answers
    assert not answer.error
    assert (answer.tokens, answer.cached_tokens, answer.first) == (TOKENS, 2, 0.0) and answer.last > 0


def test_what_goes_wrong_is_told_apart_and_ends(target: Target) -> None:
    requests = [(0.0, body(target, prompt)) for prompt in ([1], [2], [3], [9])]
    seen = load.run(target, requests, patience=2)
    refused, cut, late, good = seen.answers
    assert refused.status == 429 and "status 429" in refused.error
    assert "cut short" in cut.error
    assert late.error == "not finished in time"
    assert not good.error and seen.finished == [good]
    (nobody,) = load.run(Target("http://127.0.0.1:9/v1", "m", key=""), [(0.0, "{}")]).answers
    assert "cannot connect" in nobody.error


def answers(count: int, *, rate: float, first: float, per_token: float, cached: int) -> list[Answer]:
    return [
        Answer(
            due=index / rate,
            sent=index / rate + 0.001,
            status=200,
            first=index / rate + first,
            last=index / rate + first + 9 * per_token,
            longest_gap=2 * per_token,
            events=11,
            tokens=10,
            prompt_tokens=120,
            cached_tokens=cached,
        )
        for index in range(count)
    ]


def test_a_rate_that_is_kept_up_with() -> None:
    seen = Load(answers(100, rate=10, first=0.05, per_token=0.01, cached=96), client_cpu=0.1)
    point = to_point(10, seen, {"api": 0.5})
    assert point.offered == pytest.approx(10) and point.achieved == pytest.approx(10)
    assert point.output_tokens_per_second == pytest.approx(100)
    assert point.first_token_p50 == pytest.approx(50) and point.per_token_p99 == pytest.approx(10)
    assert point.longest_gap_p99 == pytest.approx(20) and point.cached_share == 0.8
    assert point.tokens_per_event == 1 and point.client_late_p99 == pytest.approx(1)
    assert point.failed == 0 and point.errors == []


def test_a_full_server_achieves_what_it_serves() -> None:
    """10 a second are offered; they end one every 0.25 s, the first after 3 s."""
    late = [
        dataclasses.replace(answer, last=3 + 0.25 * index)
        for index, answer in enumerate(answers(40, rate=10, first=0.05, per_token=0.01, cached=0))
    ]
    point = to_point(10, Load(late, client_cpu=0.1), {})
    assert point.offered == pytest.approx(10) and point.achieved == pytest.approx(4)


def test_what_is_answered_once_no_more_comes_says_nothing_of_a_full_server() -> None:
    """It ends 4 a second while 10 a second come, the first after 2 s, and the rest at 20 a second."""
    coming = 1 + int((9.9 - 2) / 0.25)
    ends = [2 + 0.25 * min(i, coming) + 0.05 * max(i - coming, 0) for i in range(100)]
    given = answers(100, rate=10, first=0.05, per_token=0.01, cached=0)
    full = [dataclasses.replace(answer, last=end) for answer, end in zip(given, ends, strict=True)]
    point = to_point(10, Load(full, client_cpu=0.1), {})
    assert point.achieved > 8
    assert point.sustained == pytest.approx(4, rel=0.05)


def test_failed_requests_are_counted_and_named() -> None:
    broken = Answer(5.0, 5.0, 503, error="status 503: busy")
    seen = Load([*answers(10, rate=10, first=0.05, per_token=0.01, cached=0), broken], client_cpu=0.1)
    point = to_point(10, seen, {})
    assert (point.requests, point.failed, point.errors) == (11, 1, ["status 503: busy"])
    with pytest.raises(RuntimeError, match="busy"):
        to_point(10, Load([broken], 0.0), {})


def point_at(rate: float, achieved: float, first: float, cached: float) -> Point:
    seen = Load(answers(10, rate=rate, first=first, per_token=0.01, cached=round(cached * 120)), client_cpu=0.1)
    found = to_point(rate, seen, {})
    return dataclasses.replace(found, achieved=achieved, sustained=achieved)


def test_the_cached_share_predicts_what_a_full_server_does() -> None:
    """1,200 prompt tokens, of which a cache spares 1,000: a sixth is left to compute."""
    capacity = Capacity(prefill=24_000, decode=10_000, first_token=0.004)
    shape = Shape(prefix=1000, question=200, answer=201, vocab_size=100)
    assert capacity.rate(1200, 201) == pytest.approx(1 / (0.05 + 0.02))
    radix = predict("radix", capacity, [point_at(5, 5, 0.02, 5 / 6), point_at(60, 34, 0.1, 5 / 6)], shape)
    assert radix[0]["measured"] == pytest.approx(200, abs=0.1)
    assert radix[1]["what"] == "requests/s when full"
    assert (radix[1]["predicted"], radix[1]["measured"]) == (pytest.approx(1 / (0.05 / 6 + 0.02), abs=0.01), 34)
    assert radix[2]["predicted"] == pytest.approx(4 + 50 / 6, abs=0.01)
    naive = predict("naive", capacity, [point_at(5, 5, 0.06, 0)], shape)
    assert naive[1]["what"] == "requests/s, not full yet"
    assert naive[2]["predicted"] == pytest.approx(54) and naive[2]["measured"] == pytest.approx(60)
