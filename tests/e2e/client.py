"""Runs in a pod, with Python's own library alone: requests to a service of the cluster.

python client.py ask URL MODEL [KEY]          one chat request; prints the answer's status and body
python client.py load URL MODEL RATE          streams at a constant rate until stdin ends; prints what came of them
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story about a lighthouse."}]


def ask(url: str, model: str, key: str) -> None:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    body = json.dumps({"model": model, "messages": QUESTION}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            print(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())


def stream(url: str, model: str) -> str:
    """What came of one stream: "ok", or what was wrong."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=120)
    body = {"model": model, "messages": STORY, "max_tokens": 24, "stream": True, "ignore_eos": True}
    try:
        connection.request("POST", place.path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            return f"status {answer.status}: {answer.read(200)!r}"
        text = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if not text.rstrip().endswith("data: [DONE]"):
        return f"cut: {text[-80:]!r}"
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    reason = chunks[-1]["choices"][0]["finish_reason"]
    return "ok" if reason == "length" else f"finish_reason {reason}"


def load(url: str, model: str, rate: float) -> None:
    results: Counter[str] = Counter()
    lock, ended = threading.Lock(), threading.Event()

    def one() -> None:
        result = stream(url, model)
        with lock:
            results[result] += 1

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    threads: list[threading.Thread] = []
    due = time.monotonic()
    while not ended.is_set():
        threads = [thread for thread in threads if thread.is_alive()]
        threads.append(threading.Thread(target=one))
        threads[-1].start()
        due += 1 / rate
        ended.wait(max(0.0, due - time.monotonic()))
    for thread in threads:
        thread.join()
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "")
    else:
        load(sys.argv[2], sys.argv[3], float(sys.argv[4]))
