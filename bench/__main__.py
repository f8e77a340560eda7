"""``python -m bench COMMAND``: measure engines on the same workload, and write what came out."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from minisgl.utils.errors import UserError

COMMANDS = {
    "offline": ("bench.throughput", "requests given at once: output tokens over wall time"),
    "latency": ("bench.throughput", "one request alone"),
    "step": ("bench.throughput", "one decode step of requests that began together"),
    "prefill": ("bench.throughput", "prompt tokens over wall time"),
    "online": ("bench.online", "requests that arrive when they arrive, at rising rates: latency"),
    "start": ("bench.start", "from the start of the process to ready, and to the first token"),
    "host": ("bench.host", "what the host does for one decode step"),
    "profile": ("bench.kernel_times", "where the time of a step goes, kernel by kernel"),
    "sums": ("bench.sums", "messages that several GPUs add up: peer memory beside NCCL"),
    "soak": ("bench.soak", "minutes of mixed random load: no error, no lost page, no growing memory"),
    "suite": ("bench.suite", "the standard set, what `make bench` runs"),
    "weights": ("bench.weights", "random weights of real size, for `start` to read"),
    "plot": ("bench.plots", "results as pictures"),
}
"""The module of each command, which is imported only when it is asked for, and a line about it."""


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in COMMANDS:
        width = max(map(len, COMMANDS)) + 2
        lines = [f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()]
        print("usage: python -m bench COMMAND [OPTIONS]; python -m bench COMMAND --help\n", *lines, sep="\n")
        sys.exit(0 if argv in (["--help"], ["-h"]) else 2)
    module, text = COMMANDS[argv[0]]
    command = import_module(module)
    parser = argparse.ArgumentParser(prog=f"python -m bench {argv[0]}", description=text)
    command.add_arguments(parser, argv[0])
    args = parser.parse_args(argv[1:])
    args.command = argv[0]
    command.main(args, parser)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)
