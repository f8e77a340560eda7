"""Chromium without a screen, driven by Selenium; what it asks of the network is kept."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--no-default-browser-check"),
)
SECONDS = 60
"""How long anything may take to show: the machine may be busy."""


class Browser:
    """One tab."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def element(self, name: str) -> WebElement:
        """By its id."""
        return self.driver.find_element(By.ID, name)

    def text(self, selector: str) -> str:
        """Of everything that a CSS selector finds, as it is shown."""
        return " ".join(element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Until `condition` holds; elements may be replaced while it looks."""
        wait = WebDriverWait(self.driver, SECONDS, 0.1, [StaleElementReferenceException])
        wait.until(lambda _: condition(), f"{what}: waited in vain")

    def asked(self, page: str) -> set[str]:
        """What pages under `page` have asked for since the last call; Chromium's own ask for other things."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {params["request"]["url"] for params in sent if params["documentURL"].startswith(page)}

    def complaints(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """A new browser with an empty profile in `directory`; skips where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser: the commands `chromium` and `chromedriver` are not installed")
    options = ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={directory}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    tab = Chrome(options=options, service=Service(executable_path=driver))
    try:
        yield Browser(tab)
    finally:
        tab.quit()
