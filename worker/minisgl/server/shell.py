"""The chat in the terminal, over the worker's own HTTP endpoint: a process beside the others, for ``--shell``."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from typing import Any

from minisgl.server.config import ShellConfig
from minisgl.server.tls import client_context
from minisgl.utils.child import run_child

HELP = """\
Write a message and press return. Ctrl-C stops an answer, Ctrl-D leaves.
  /reset   forget the conversation
  /help    show this
  /exit    leave"""
POLL_SECONDS = 0.2


class Chat:
    """A conversation with the served model."""

    def __init__(self, config: ShellConfig) -> None:
        self._config = config
        self._tls = None if config.certfile is None else client_context(config.certfile)
        self._history: list[dict[str, str]] = []

    def run(self) -> None:
        """Talk until the input ends or the user leaves."""
        if not self._wait_ready():
            return
        print(f"{self._config.model} is ready. /help shows the commands.", flush=True)
        while True:
            try:
                line = input("> ").strip()
                if line == "/exit":
                    return
                self._handle(line)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()

    def _handle(self, line: str) -> None:
        match line:
            case "":
                pass
            case "/reset":
                self._history.clear()
                print("The conversation is forgotten.", flush=True)
            case "/help":
                print(HELP, flush=True)
            case _ if line.startswith("/"):
                print(f"No such command: {line}. /help shows the commands.", flush=True)
            case _:
                self._ask(line)

    def _wait_ready(self) -> bool:
        """Wait for the worker, showing what it waits for. False: the user would not."""
        shown = ""
        try:
            while (reason := self._not_ready()) is not None:
                if reason != shown:
                    print(reason, flush=True)
                    shown = reason
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            print()
            return False
        except ssl.SSLCertVerificationError as error:
            print(f"the server's certificate is not valid: {error.verify_message}", file=sys.stderr, flush=True)
            return False
        return True

    def _not_ready(self) -> str | None:
        try:
            with self._connection() as connection:
                connection.request("GET", "/ready")
                response = connection.getresponse()
                body = response.read()
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, http.client.HTTPException):
            return "starting"  # should the worker have failed instead, the launcher ends this process too
        return None if response.status == 200 else str(json.loads(body)["error"]["message"])

    def _ask(self, message: str) -> None:
        """Stream the answer to the terminal. Leaving the connection early makes the worker stop generating.

        Thoughts are shown, and not given back to the model.
        """
        question = {"role": "user", "content": message}
        answer, thinks = "", False
        try:
            for thought, text in self._stream([*self._history, question]):
                print(thought + ("\n\n" if thinks and text else "") + text, end="", flush=True)
                answer += text
                thinks = bool(thought)
            print()
        except KeyboardInterrupt:
            print(" [stopped]")
        except (OSError, http.client.HTTPException, RefusedError) as error:
            print(f"\nno answer: {error}", file=sys.stderr, flush=True)
            return
        if answer:
            self._history += [question, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
        """Pieces of the thought and of the answer."""
        body = json.dumps({"model": self._config.model, "messages": messages, "stream": True})
        headers = {"content-type": "application/json"}
        if self._config.api_key is not None:
            headers["authorization"] = f"Bearer {self._config.api_key}"
        with self._connection() as connection:
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise RefusedError(json.loads(response.read())["error"]["message"])
            for line in response:
                data = line.removeprefix(b"data: ").strip()
                if data and data != b"[DONE]":
                    yield from _texts(json.loads(data))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        host, port = self._config.host, self._config.port
        if self._tls is None:
            connection = http.client.HTTPConnection(host, port)
        else:
            connection = http.client.HTTPSConnection(host, port, context=self._tls)
        try:
            yield connection
        finally:
            connection.close()


class RefusedError(Exception):
    """The worker answered with an error."""


def _texts(chunk: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in chunk:
        raise RefusedError(chunk["error"]["message"])
    for choice in chunk["choices"]:
        yield choice["delta"].get("reasoning_content", ""), choice["delta"].get("content", "")


def main(_name: str, config: ShellConfig) -> None:
    with contextlib.suppress(ImportError):
        # For its effect on input(): editing and history. Not at the top: it writes to a terminal when imported.
        import readline  # noqa: F401, PLC0415
    # While input() waits, so that the terminal is given back as it was.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Chat(config).run()


if __name__ == "__main__":
    run_child(ShellConfig, main, source=int(sys.argv[1]))
