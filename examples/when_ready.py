"""Wait until the worker that is this process's parent is ready, then print a first request to type.

    python examples/when_ready.py URL & exec python -m minisgl ...

Ends without a word when the parent ends first.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request

POLL_SECONDS = 0.5


def main() -> None:
    url = sys.argv[1].replace("//0.0.0.0", "//127.0.0.1")
    parent = os.getppid()
    started = time.monotonic()
    # At first nothing listens there yet, or another server, and then the worker will not start.
    time.sleep(1)
    while not is_ready(url):
        if os.getppid() != parent:
            return
        time.sleep(POLL_SECONDS)
    if os.getppid() == parent:
        print(first_request(url, time.monotonic() - started), flush=True)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5):
            return True
    except (OSError, ValueError):
        return False


def first_request(url: str, seconds: float) -> str:
    key = os.environ.get("MINISGL_API_KEY")
    models = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(models, timeout=5) as answer:
            model = json.load(answer)["data"][0]["id"]
    except urllib.error.HTTPError as error:  # its key comes from a file or an option
        return f"\nReady after {seconds:.0f} s at {url} ({error}).\n"
    chat = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    header = ' -H "Authorization: Bearer $MINISGL_API_KEY"' if key else ""
    return (
        f"\nReady after {seconds:.0f} s. Ask it something (Ctrl-C here stops it):\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} \\\n"
        f"    -d '{json.dumps(chat)}'\n"
    )


if __name__ == "__main__":
    main()
