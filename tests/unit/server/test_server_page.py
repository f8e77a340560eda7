"""The page at ``/`` and the state that feeds it, over scripted workers; a browser looks at it elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from minisgl.message import SchedulerStats, StepRecord, Timeline, ToScheduler, Watch
from minisgl.message.codec import Decoder
from minisgl.server.recent_steps import CAPACITY, NAMES, RecentSteps
from minisgl.utils.sockets import pull_socket
from support.api_server import MODEL, ApiServer, api_server
from support.fake_workers import LIMITS, wait_until

KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with api_server(api_key="k") as server:
        yield server


def state(server: ApiServer, query: str = "") -> dict[str, Any]:
    answer = server.http.get(f"/page/state{query}", headers=KEY)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


def test_the_page_needs_no_key_and_holds_no_data(server: ApiServer) -> None:
    answer = server.http.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert MODEL not in answer.text
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s'\"]*", answer.text)) - {"http://www.w3.org/2000/svg"}
    assert not {address for address in addresses if "." in address.split("/")[2]}, (
        "nothing is loaded from elsewhere"
    )


def test_its_policy_allows_what_stands_in_it_and_nothing_else(server: ApiServer) -> None:
    answer = server.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_state_needs_the_key(server: ApiServer) -> None:
    for headers in ({}, {"authorization": "Bearer x"}):
        assert server.http.get("/page/state", headers=headers).status_code == 401


def test_the_state_has_numbers_names_and_no_text(server: ApiServer) -> None:
    server.workers.send(SchedulerStats(running=2, queued=1, used_pages=5, total_pages=64, prompt_tokens=9))
    body = {"model": MODEL, "prompt": "confidential|<hang>", "stream": True}
    headers = KEY | {"x-request-id": "mine"}
    with server.http.stream("POST", "/v1/completions", json=body, headers=headers):
        wait_until(lambda: state(server)["running"] == 2)
        shown = state(server)
        uid = shown["in_flight"][0]["uid"]
        times = {"started": 10.5, "seconds": 0.25}
        server.workers.send(Timeline(crowds=[[uid]], steps=[StepRecord(7, 10.5, 0.25, 0, [(uid, 12)])]))
        wait_until(lambda: bool(state(server)["steps"]))
        shown = state(server)
        assert shown["steps"] == [{"number": 7, **times, "decoded": 0, "read": [[uid, 12]]}]
        assert (shown["crowds"], shown["names"]) == ([[uid]], {str(uid): "mine"})
        assert state(server, "?after=7")["steps"] == [] and state(server, "?after=6")["steps"]
        (request,) = shown["in_flight"]
        assert (request["name"], request["generated"], request["prompt_tokens"]) == ("mine", 1, 7)
        assert (shown["model"], shown["not_ready"], shown["queued"]) == (MODEL, None, 1)
        assert shown["limits"]["max_seq_len"] == LIMITS.max_seq_len
        assert shown["pages"] == {"total": 64, "used": 5, "cached": 0}
        assert shown["generated_tokens"] >= 1
        assert "confidential" not in str(shown)
    wait_until(lambda: state(server)["in_flight"] == [])


@pytest.mark.parametrize("after", ["x", "1.5", "9" * 30, ""])
def test_a_wrong_step_is_named(server: ApiServer, after: str) -> None:
    answer = server.http.get(f"/page/state?after={after}", headers=KEY)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


def test_the_scheduler_is_asked_only_while_somebody_looks() -> None:
    with api_server() as server:
        context: zmq.Context[Any] = zmq.Context()
        inbox = pull_socket(context, server.frontend._scheduler_address)
        server.http.get("/")
        server.complete("a")
        assert not inbox.poll(100)
        for _ in range(20):
            server.http.get("/page/state")
        assert inbox.poll(5000)
        message = Decoder[ToScheduler](ToScheduler)(inbox.recv())
        assert isinstance(message, Watch) and message.seconds > 1
        assert not inbox.poll(100), "a request for the state is no message to the scheduler"
        context.destroy(linger=0)


def test_it_can_be_switched_off() -> None:
    with api_server(page=False) as server:
        for path in ("/", "/page/state"):
            answer = server.http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_while_loading_it_says_so() -> None:
    with api_server(ready=False) as server:
        shown = server.http.get("/page/state").json()
        assert shown["limits"] is None and shown["not_ready"].startswith("loading: waiting for")


def test_old_steps_and_names_are_forgotten() -> None:
    recent = RecentSteps()
    for uid in range(NAMES + 5):
        recent.name(uid, f"request-{uid}")
    assert (recent.name_of(4), recent.name_of(5)) == ("", "request-5")
    for number in range(CAPACITY + 5):
        recent.add(Timeline(crowds=[[9]], steps=[StepRecord(number, 0.0, 0.0, 0, [(1, 3)])]))
    told = recent.since(-1)
    assert len(told["steps"]) == CAPACITY and told["steps"][0]["number"] == 5
    assert told["crowds"] == [[9]], "the same company is told once"
    assert told["names"] == {9: "request-9"}
