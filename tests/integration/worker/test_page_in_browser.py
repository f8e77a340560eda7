"""The page in a real browser, with a real worker behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import ActionChains

from support.browser import Browser, browser
from support.dummy_model import make_dummy_model
from support.worker_process import WorkerProcess

KEY = "s3cret"
NAME = "tiny-model"
OPTIONS = (
    *("--dummy-weight", "--device", "cpu", "--num-pages", "400", "--served-model-name", NAME),
    *("--max-running-requests", "6", "--max-prefill-length", "64", "--api-key", KEY, "--log-format", "json"),
    *("--max-seq-len", "256", "--drain-grace", "0"),
)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[WorkerProcess]:
    model = make_dummy_model(tmp_path_factory.mktemp("models") / "tiny", smollm2)
    with WorkerProcess(model, *OPTIONS) as worker:
        yield worker.wait_ready()
        assert worker.stop() == 0
        lines = [json.loads(line) for line in worker.log().splitlines()]  # every line, of every process
        assert {"launcher", "api", "scheduler-0"} <= {line["process"] for line in lines}
        assert not [line for line in lines if line["level"] not in ("info", "debug")]


@pytest.fixture(scope="module")
def tab(worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.driver.get(worker.url)
        yield tab
        asked = tab.asked(worker.url)
        assert f"{worker.url}/v1/chat/completions" in asked
        assert not [url for url in asked if not url.startswith((f"{worker.url}/", "data:"))], (
            "a request left the host"
        )
        refused = "page/state?after=-1 - Failed to load resource: the server responded with a status of 401"
        complaints = [said for said in tab.complaints() if refused not in said]
        assert not complaints, "the browser complains"


def test_a_wrong_key_is_told_and_the_right_one_opens_it(tab: Browser) -> None:
    tab.wait(lambda: tab.element("key-form").is_displayed(), "the form for the key")
    assert not tab.element("main").is_displayed() and not tab.element("key-error").is_displayed()
    assert NAME not in tab.driver.page_source
    tab.element("key").send_keys("wrong")
    tab.element("key-send").click()
    tab.wait(lambda: "does not take this key" in tab.text("#key-error"), "the error")
    tab.element("key").clear()
    tab.element("key").send_keys(KEY)
    tab.element("key-send").click()
    tab.wait(lambda: tab.text("#model") == NAME, "the model's name")
    assert tab.text("#status") == "ready" and not tab.element("key-form").is_displayed()
    assert "6 requests at once" in tab.text("#about") and "400 pages" in tab.text("#about")
    stored = "return [localStorage.length, sessionStorage.length, document.cookie]"
    assert tab.driver.execute_script(stored) == [0, 0, ""]


def test_a_chat(tab: Browser, worker: WorkerProcess) -> None:
    tab.element("chat-input").send_keys("Hello\n")
    tab.wait(lambda: "tokens/s" in tab.text(".answer .note"), "the end of the answer")
    assert tab.text(".question") == "Hello"
    assert tab.text(".answer .body") and not tab.text(".answer .error")
    ids = [json.loads(line).get("request_id", "") for line in worker.log().splitlines()]
    assert [name for name in ids if name.startswith("page-")], "the log knows the request by the page's name"


def test_it_moves_under_load(tab: Browser, worker: WorkerProcess) -> None:
    stop = threading.Event()

    def client(number: int) -> None:
        words = " ".join(f"{number} and {word}" for word in range(16))
        fields = {"model": NAME, "prompt": words, "max_tokens": 80, "ignore_eos": True, "stream": True}
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": f"load-{number}"}
        while not stop.is_set():
            url = f"{worker.url}/v1/completions"
            with httpx.stream("POST", url, json=fields, headers=headers, timeout=60) as answer:
                for _ in answer.iter_lines():
                    if stop.is_set():
                        return

    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(client, number) for number in range(10)]
        try:
            tab.wait(lambda: tab.text("#running") == "6" and tab.text("#waiting") != "0", "what runs and waits")
            tab.wait(lambda: all(tab.text(f"#rate-{way}") != "0" for way in ("in", "out")), "tokens per second")
            tab.wait(lambda: tab.text("#pool") != "0 %" and tab.text("#hits") != "–", "pool and cache")
            tab.wait(lambda: int(tab.element("timeline").get_attribute("data-columns") or 0) > 20, "columns")
            tab.wait(lambda: "load-" in tab.text("#table") and "answering" in tab.text("#table"), "the table")
            timeline = tab.element("timeline")
            right = timeline.size["width"] // 2 - 30
            ActionChains(tab.driver).move_to_element_with_offset(timeline, right, 0).perform()
            tab.wait(lambda: "Step" in tab.text("#tip b") and "load-" in tab.text("#tip"), "what a step did")
            assert "token" in tab.text("#tip")
        finally:
            stop.set()
    for ended in clients:
        ended.result()
    tab.wait(lambda: tab.text("#running") == "0" and tab.text("#table-note") == "none", "the end of the load")
