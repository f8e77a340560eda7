"""Runs a function in several real processes that can talk to each other."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from minisgl.distributed import Communicator, connect

T = TypeVar("T")

DEADLINE = 120
"""Seconds that a rank may take."""


def run_ranks(
    size: int, function: Callable[..., T], *arguments: Any, options: dict[str, Any] | None = None
) -> list[T]:
    """``function(communicator, *arguments)`` on `size` ranks; the results in the order of the ranks.

    Raises what a rank raised. `function` is a module's, so that another process can import it. With `options`, of
    `connect`, each rank has a GPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "minisgl.models.loader"])  # imported once, not once a rank
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = str(Path(directory) / "rendezvous")
        ranks = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(theirs, rank, size, rendezvous, options, function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            outcomes = [_receive(rank, pipe) for rank, (_, pipe) in enumerate(ranks)]
        finally:
            for process, pipe in ranks:
                pipe.close()
                process.kill()
                process.join()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def _receive(rank: int, pipe: Connection[Any, Any]) -> Any:
    if not pipe.poll(DEADLINE):
        return TimeoutError(f"rank {rank} has not answered in {DEADLINE} s")
    try:
        return pipe.recv()
    except EOFError:
        return RuntimeError(f"rank {rank} died")


def _rank(
    pipe: Connection[Any, Any],
    rank: int,
    size: int,
    rendezvous: str,
    options: dict[str, Any] | None,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        device = torch.device("cpu") if options is None else torch.device("cuda", rank)
        if options is not None:
            torch.cuda.set_device(device)
        comm: Communicator = connect(rank, size, rendezvous, device, **(options or {}))
        pipe.send(function(comm, *arguments))
    except Exception as error:
        pipe.send(error)
        raise
    pipe.poll(DEADLINE)  # until the parent has every rank's result: leaving early would break the others
