"""`start`: seconds from the start of ``python -m minisgl`` until it is ready, and until a client has a token."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from bench import report
from bench.arguments import MODEL_HELP, positive
from bench.dummy import model_path
from bench.figures import Figure, peers_of, print_figures
from bench.server import Server
from minisgl.models.config import ModelConfig

PHASE = "minisgl:start_seconds"


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--server-options", default="", help="more options of python -m minisgl")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the model's files from the page cache each time")
    report.add_out(parser)


def main(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> None:
    results, figures = measure(args.model, args.server_options, args.runs, cold=args.cold)
    print_figures(f"Start of the server, medians of {args.runs} run(s)", figures)
    report.save(args, "start", results)


def measure(
    model: Path, options: str, runs: int, *, cold: bool = False
) -> tuple[list[dict[str, Any]], list[Figure]]:
    """Each run, and medians as figures: ready, first token, and the scheduler's phases, one after the other.

    A first start is not counted: it may compile kernels, and Python's modules to bytecode.
    """
    start_once(model, options)
    results: list[dict[str, Any]] = []
    for _ in range(runs):
        if cold:
            forget_files(model)
        results.append(start_once(model, options))
    config, gpu = ModelConfig.load(model), report.gpu_name()

    def median(key: str) -> float:
        return statistics.median(float(run[key]) for run in results)

    figures = [
        Figure("start", "process start to ready", median("ready"), "s", peers=peers_of(config, "start", gpu)),
        Figure("start-first-token", "process start to first token", median("first_token"), "s"),
    ]
    for phase in results[0]["phases"]:
        seconds = statistics.median(run["phases"][phase] for run in results)
        figures.append(Figure(f"start-{phase}", f"  of the scheduler: {phase}", seconds, "s"))
    return results, figures


def start_once(model: Path, options: str) -> dict[str, Any]:
    """Seconds: `ready`, `first_token`, `phases`."""
    with Server(model, shlex.split(options)) as server:
        ready = server.ready()
        body = server.target.completion([1], 1).encode()
        request = Request(f"{server.target.url}/completions", body, {"content-type": "application/json"})
        with urlopen(request, timeout=300) as response:
            response.read()
        first = time.monotonic() - server.started_at
        phases = {
            name.removeprefix(PHASE).strip("[]"): seconds
            for name, seconds in server.metrics().items()
            if name.startswith(PHASE)
        }
    return {"ready": round(ready, 3), "first_token": round(first, 3), "phases": phases}


def forget_files(directory: Path) -> None:
    """Drop a model's files from the page cache, as far as nobody has changed or mapped them."""
    for path in directory.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
