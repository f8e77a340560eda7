"""An open-loop HTTP client: requests leave when they are due, whatever has become of those before.

While requests run, it only notes when bytes came; the answers are parsed when they are complete. So one process
reads tens of thousands of events a second. It is a process of its own (``python -m bench.load``, a job as JSON on
its standard input) and imports nothing heavy: what measures must not take part in what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import ssl
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, cast
from urllib.parse import urlsplit

try:
    from uvloop import new_event_loop
except ImportError:  # half as fast, and good enough for most servers
    from asyncio import new_event_loop  # type: ignore[assignment]

LEAD_SECONDS = 0.2
"""Between the last client's readiness and the beginning of the load."""


@dataclass(frozen=True)
class Answer:
    """What became of one request. Times in seconds from the beginning of the load."""

    due: float
    sent: float
    status: int
    """Of HTTP; 0 when there was no whole answer."""
    first: float = 0.0
    """When the first event came; 0 for an answer that was not streamed."""
    last: float = 0.0
    """When the event with the finish reason came, or the end of an answer that was not streamed."""
    longest_gap: float = 0.0
    """Between two arrivals of events, from the first to the last."""
    events: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, as the server reports in its usage; 0 too when it does not."""
    error: str = ""

    @property
    def time_to_first_token(self) -> float:
        """From when the request was due, so that a client that falls behind cannot flatter the server."""
        return self.first - self.due

    @property
    def time_per_output_token(self) -> float:
        """Of the tokens after the first; 0 for a single one."""
        return (self.last - self.first) / max(self.tokens - 1, 1)


@dataclass(frozen=True)
class Load:
    """What a load generator saw."""

    answers: list[Answer]
    """In the order of the requests."""
    client_cpu: float
    """Largest share of a core that one client process took while answers came."""

    @property
    def finished(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.error]


@dataclass
class Target:
    """An OpenAI endpoint: ``http://host:port/v1`` and who may ask."""

    url: str
    model: str = ""
    key: str = field(default_factory=lambda: os.environ.get("OPENAI_API_KEY", ""))

    def completion(self, prompt: list[int], max_tokens: int, **more: Any) -> str:
        """A body for ``/completions``: exactly `max_tokens` tokens after `prompt`."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return json.dumps(body | more)


STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
"""More of a body: the answer as events, with the usage at the end."""


def run(
    target: Target, requests: Sequence[tuple[float, str]], *, clients: int = 1, patience: float = 60.0
) -> Load:
    """Send each body when its time comes, in seconds from the beginning, ascending, over `clients` processes.
    `patience`: seconds after the last one is due, after which what is unfinished is given up.
    """
    processes = []
    for client in range(clients):
        job = {"patience": patience, "requests": requests[client::clients]} | asdict(target)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        _tell(process, job)
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it has read its job
    start = time.monotonic() + LEAD_SECONDS
    for process in processes:
        _tell(process, start)
    answers: list[Answer | None] = [None] * len(requests)
    cpu = 0.0
    for client, process in enumerate(processes):
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"client {client} of {clients} ended with {process.returncode}")
        result = json.loads(output)
        cpu = max(cpu, result["cpu"])
        answers[client::clients] = [Answer(**answer) for answer in result["answers"]]
    return Load([answer for answer in answers if answer is not None], cpu)


def _tell(process: subprocess.Popen[str], message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


class _Exchange(asyncio.Protocol):
    """One request and its answer, on a connection of its own."""

    def __init__(self, due: float, request: bytes, start: float) -> None:
        self._due = due
        self._request = request
        self._start = start
        self._sent = 0.0
        self._received = bytearray()
        self._times: list[float] = []
        self._lengths: list[int] = []
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is no subclass
        self._sent = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._times.append(time.monotonic())
        self._received += data
        self._lengths.append(len(self._received))

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self.answer())

    def answer(self, trouble: str = "") -> Answer:
        """The request as it stands; `trouble` says why it is not finished."""
        raw = bytes(self._received)
        sent = self._sent - self._start
        head, _, rest = raw.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.") else 0
        if trouble or status != 200:
            body = rest.decode(errors="replace").strip()
            return Answer(
                self._due, sent, status, error=trouble or f"status {status}: {body[:300] or 'no answer'}"
            )
        usage, begin, end = _usage(raw), raw.find(b"data: ", len(head)), raw.rfind(b'"finish_reason":"')
        end = end if end >= 0 else raw.rfind(b'"finish_reason": "')
        if usage is None or end < 0:
            text = rest[-300:].decode(errors="replace")
            return Answer(self._due, sent, 0, error=f"the answer was cut short: {text}")
        counts = {
            "tokens": usage["completion_tokens"],
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        }
        if begin < 0:
            return Answer(self._due, sent, 200, last=self._times[-1] - self._start, **counts)
        first, last = (bisect_right(self._lengths, place) for place in (begin, end))
        times = self._times[first : last + 1]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return Answer(
            self._due,
            sent,
            200,
            first=times[0] - self._start,
            last=times[-1] - self._start,
            longest_gap=max(gaps, default=0.0),
            events=raw.count(b"data: {"),
            **counts,
        )


def _usage(raw: bytes) -> dict[str, Any] | None:
    """The last `usage` object in the answer."""
    place = raw.rfind(b'"usage":')
    begin = raw.find(b"{", place)
    if place < 0 or begin < 0:
        return None
    text = raw[begin:].decode(errors="replace")
    try:
        usage: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None
    return usage if "completion_tokens" in usage else None


async def _generate(job: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    url = urlsplit(job["url"])
    tls = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if tls else 80)
    authorization = f"Authorization: Bearer {job['key']}\r\n" if job["key"] else ""

    async def exchange(due: float, body: str) -> Answer:
        content = body.encode()
        request = (
            f"POST {url.path.rstrip('/')}/completions HTTP/1.1\r\nHost: {url.netloc}\r\n{authorization}"
            f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode() + content
        await asyncio.sleep(job["start"] + due - time.monotonic())
        one = _Exchange(due, request, job["start"])
        try:
            await loop.create_connection(lambda: one, url.hostname, port, ssl=tls)
            return await one.done
        except OSError as error:
            return one.answer(f"cannot connect: {error}")
        except asyncio.CancelledError:
            return one.answer("not finished in time")

    tasks = [asyncio.create_task(exchange(due, body)) for due, body in job["requests"]]
    await asyncio.sleep(max(job["start"] - time.monotonic(), 0))
    busy, began = time.process_time(), time.monotonic()
    if tasks:
        last_due = job["requests"][-1][0]
        await asyncio.wait(tasks, timeout=job["start"] + last_due + job["patience"] - time.monotonic())
    cpu = (time.process_time() - busy) / max(time.monotonic() - began, 1e-9)
    for task in tasks:
        task.cancel()
    return {"cpu": cpu, "answers": [asdict(answer) for answer in await asyncio.gather(*tasks)]}


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a request is a descriptor
    job = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    job["start"] = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        json.dump(runner.run(_generate(job)), sys.stdout)


if __name__ == "__main__":
    main()
