"""``python -m minisgl.download``: a model of the Hugging Face Hub, as a plain directory.

Does nothing when the directory holds the model already. Started again after it was ended, it keeps the files that
were whole.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minisgl.download.failure import Failure, Status, disk_failure
from minisgl.download.target import Target

REPORT_SECONDS = 1.0


def main() -> None:
    """Exit status: 0 when the directory is whole, else a `Status`. A signal ends it at once: 128 + its number."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os._exit(128 + number))  # no waiting for threads that download
    options = parse_arguments(sys.argv[1:])
    try:
        download(options.repo, options.revision, Target(options.into))
    except (Failure, OSError) as error:
        failure = error if isinstance(error, Failure) else disk_failure(error)
        if failure is None:
            raise
        print(f"minisgl.download: error: {failure}", file=sys.stderr, flush=True)
        sys.exit(failure.status)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Exits with `Status.USAGE` when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="minisgl.download", description="Download a model from the Hugging Face Hub into a plain directory."
    )
    parser.add_argument("--repo", required=True, metavar="ORG/NAME")
    parser.add_argument("--revision", default="main", metavar="REV", help="branch, tag or commit (default: main)")
    parser.add_argument("--into", required=True, type=Path, metavar="DIR")
    return parser.parse_args(arguments)


def download(repo: str, revision: str, target: Target) -> None:
    """Fill `target` unless it is whole, and report on standard output. Raises `Failure` or `OSError`."""
    if (snapshot := target.whole(repo, revision)) is not None:
        return report(snapshot.size, snapshot.size)
    # A second's import that a directory which is whole does not need.
    from minisgl.download.hub import fetch, look_up  # noqa: PLC0415

    snapshot = look_up(repo, revision)
    with reporting(lambda: target.bytes_done(snapshot.files), snapshot.size), target.locked():
        if target.whole(repo, revision) is not None:  # made so by another download, while this one waited for it
            return None
        target.remove_broken(snapshot.files)
        target.check_space(snapshot.files)
        fetch(snapshot, target.path)
        if (name := target.lacks(snapshot.files)) is not None:
            raise Failure(Status.UNREACHABLE, f"{repo}: {name} did not come whole")
        target.finish(snapshot)
    return None


@contextmanager
def reporting(done: Callable[[], int], total: int) -> Iterator[None]:
    """Report every second, and at the end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(REPORT_SECONDS):
            report(done(), total)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        report(done(), total)


def report(done: int, total: int) -> None:
    """One line for whoever shows how far it is."""
    print(json.dumps({"bytes_done": done, "bytes_total": total}), flush=True)


if __name__ == "__main__":
    main()
