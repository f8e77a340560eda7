"""Runs one service on this machine, from its file to the exit status."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minisgl_operator import api
from minisgl_operator.local.child import Child, Ended, Event, Events, Failed, Order, Ready, orders, watch
from minisgl_operator.local.download import run_download
from minisgl_operator.local.errors import LocalError
from minisgl_operator.local.model import find_model
from minisgl_operator.local.pod import LocalPod, Place, notes, processes
from minisgl_operator.validate import InvalidFile, InvalidResource, load_service, validate

AT_ONCE_SECONDS = 8.0
"""What a worker that was told twice may take, to clear away its processes."""


def run_local(file: Path, *, host: str, port: int, models: Path) -> int:
    """Serve what `file` asks for until told to end. The exit status is the worker's, 0 after a drain.

    Raises `LocalError` for what the user must mend.
    """
    events: Events = queue.SimpleQueue()
    with orders(events), tempfile.TemporaryDirectory(prefix="minisgl-local-") as scratch:
        document, secrets = _load(file)
        spec = api.Spec.model_validate(document["spec"])
        name = document["metadata"]["name"]
        if spec.suspend:
            _say(f"{name}: spec.suspend is true: nothing is started")
            return 0
        source, models = spec.model.hugging_face, models.expanduser().absolute()
        place = Place(
            models=models,
            cache=_cache_directory(os.environ),
            scratch=Path(scratch),
            model=None if source is None else find_model(source, models),
        )
        pod = processes(document, secrets, place, host=host, port=port, environ=os.environ)
        _check_machine(host, port)
        for note in notes(spec):
            _say(f"{name}: {note}")
        if pod.download is not None and source is not None:
            _say(f"{name}: downloading {source.repo} ({source.revision}) to {_near(pod.model)}")
            if not run_download(pod.download, events):
                _say("stopped; what is there is kept")
                return 0
        else:
            if not pod.model.is_dir():
                raise LocalError(f"spec.model.pvc: a claim is a directory here, and {_near(pod.model)} is none")
            _say(f"{name}: the model in {_near(pod.model)}")
        _write(pod.files)
        return _serve(pod, events, host, port)


def _load(file: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    try:
        given = load_service(file)
        return validate(given.service), given.secrets
    except InvalidFile as error:
        raise LocalError(str(error)) from None
    except InvalidResource as error:
        raise LocalError("\n  ".join(f"{file}: {problem}" for problem in error.problems)) from None


def _check_machine(host: str, port: int) -> None:
    if importlib.util.find_spec("minisgl") is None or importlib.util.find_spec("torch") is None:
        raise LocalError("the worker is not installed here: pip install 'minisgl[worker]'")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server((str(address[0]), port), family=family).close()
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (")[0].lower()
        raise LocalError(f"cannot listen on {host} port {port}: {reason}; see --host and --port") from None


def _write(files: Mapping[Path, str]) -> None:
    for path, content in files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(content, "utf-8")


def _cache_directory(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "minisgl"


def _near(path: Path) -> str:
    """As short as it can be said here."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _serve(pod: LocalPod, events: Events, host: str, port: int) -> int:
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{near}]' if ':' in near else near}:{port}"
    began = time.monotonic()
    ready, deadline = False, None
    with Child(pod.worker, events) as child:
        watch(url, pod.startup, pod.liveness, events)
        while True:
            match _next(events, deadline):
                case Ended(status):
                    return _exit_status(status, ordered=deadline is not None)
                case Ready() if deadline is None:
                    ready = True
                    _say(_first_request(pod, url, time.monotonic() - began))
                case Failed(reason) if deadline is None:
                    print(f"minisgl-operator: error: the worker is stopped: {reason}", file=sys.stderr)
                    return 1
                case Order(number) if deadline is None:
                    _say("\nStopping: running requests are finished first (Ctrl-C again: at once).")
                    # By SIGINT it takes no more requests at once; after SIGTERM some may still be on their way.
                    # One that is not ready has nothing to finish.
                    child.send(signal.SIGINT if ready and number == signal.SIGINT else signal.SIGTERM)
                    deadline = time.monotonic() + pod.grace_seconds
                case Order(number):
                    child.send(number)
                    deadline = time.monotonic() + AT_ONCE_SECONDS
                case None:
                    child.kill()
                    deadline = time.monotonic() + AT_ONCE_SECONDS
                case _:
                    pass


def _next(events: Events, deadline: float | None) -> Event | None:
    """None: the deadline has passed."""
    try:
        return events.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        return None


def _exit_status(status: int, *, ordered: bool) -> int:
    """`ordered`: we told it to end, perhaps before it could handle the signal."""
    if ordered and status in (-signal.SIGTERM, -signal.SIGINT):
        return 0
    return status if status >= 0 else 128 - status


def _first_request(pod: LocalPod, url: str, seconds: float) -> str:
    chat = {"model": pod.served_name, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    key = None
    if pod.key_file is not None:
        key = f"$(cat {shlex.quote(str(pod.key_file))})"
    elif "MINISGL_API_KEY" in pod.worker.environment:
        key = "$MINISGL_API_KEY"
    header = f' -H "Authorization: Bearer {key}"' if key else ""
    return (
        f"\nReady after {seconds:.0f} s. Ask it something (Ctrl-C here stops it):\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} \\\n"
        f"    -d {shlex.quote(json.dumps(chat))}\n"
    )


def _say(line: str) -> None:
    print(line, flush=True)
