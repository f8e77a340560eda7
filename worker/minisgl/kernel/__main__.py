"""``python -m minisgl.kernel build``: compile what a worker would compile at its start and for its first requests.

It takes the worker's options, and runs the worker's engine on random weights through the shapes and the ways of
sampling that select kernels. So whatever is compiled is what the worker itself will look for.
"""

from __future__ import annotations

import argparse
import inspect
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from minisgl.core.config import EngineLimits
from minisgl.core.sampling import SamplingParams
from minisgl.models import checkpoint
from minisgl.server.args import parse_arguments
from minisgl.utils.child import EXIT_USER_ERROR
from minisgl.utils.errors import UserError
from minisgl.utils.kernel_cache import KERNEL_CACHE, use_kernel_cache

if TYPE_CHECKING:
    from minisgl.llm import LLM

TOKENS = 3
"""Generated for each prompt: by its prefill, by a first decode step, and by one of the same rows as before."""
WAYS = [
    SamplingParams(max_tokens=TOKENS, ignore_eos=True, **way)
    for way in (
        {"temperature": 0.0},
        {},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"presence_penalty": 0.5, "logit_bias": ((0, 1.0),)},
    )
]
LENGTHS = (1, 2, 15, 16, 17, 100, 512, 1025)
"""Of single prompts. Kernels differ for one token, for multiples of 16, and for many."""


def main() -> None:
    """Exit status: 0 when all is built, 2 for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="minisgl.kernel",
        allow_abbrev=False,
        usage="%(prog)s build --kernel-cache DIR --model DIR_OR_ID [options]",
        description="Compile ahead the kernels that `python -m minisgl` with the same options needs on this GPU.",
        epilog=f"{KERNEL_CACHE} may stand for --kernel-cache. No weights are read.",
    )
    parser.add_argument("command", choices=["build"])
    _, options = parser.parse_known_args()
    try:
        build(options)
    except UserError as error:
        print(f"minisgl.kernel: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def build(arguments: Sequence[str]) -> None:
    """Fill the cache, and report on standard output. Raises `UserError`."""
    started = time.monotonic()
    options = parse_arguments(arguments, os.environ)
    if options.kernel_cache is None:
        raise UserError(f"name the directory to fill with --kernel-cache DIR or {KERNEL_CACHE}")
    if options.engine.device != "cuda":
        raise UserError("kernels are compiled for the GPU of this machine, and it has none")
    path = checkpoint.resolve(options.model, options.revision)
    model = checkpoint.inspect(path, skip_weights=True)
    worker = options.worker(
        path, checkpoint_dtype=model.dtype, max_position=model.max_position, sampling=model.sampling
    )
    cache = use_kernel_cache(options.kernel_cache, os.environ)
    before = _files(cache)
    # Torch, whose import takes seconds, is not needed to refuse an option.
    from minisgl.llm import LLM  # noqa: PLC0415

    given = msgspec.structs.asdict(worker.engine) | msgspec.structs.asdict(worker.scheduler)
    known = {name: value for name, value in given.items() if name in inspect.signature(LLM).parameters}
    with LLM(str(path), **known | {"dummy_weight": True}) as llm:
        run(llm, worker.scheduler.prefill_budget)
    new = len(_files(cache) - before)
    print(f"{cache}: {new} new files, {len(before) + new} in all, {time.monotonic() - started:.0f} s")


def run(llm: LLM, prefill_budget: int) -> None:
    """Generate with every kind of batch that has kernels of its own."""
    for prompts in _batches(llm.limits, prefill_budget):
        for params in WAYS if len(prompts[0]) < 8 else WAYS[:1]:
            llm.generate(prompts, params)


def _batches(limits: EngineLimits, prefill_budget: int) -> Iterator[list[list[int]]]:
    """Prompts that share no beginning, so that none comes out of the prefix cache."""
    draw = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [draw.randrange(limits.vocab_size) for _ in range(length)]

    room = limits.max_seq_len - TOKENS
    for length in sorted({*LENGTHS, prefill_budget, prefill_budget + 1}):
        if length <= room:
            yield [prompt(length)]
    most = min(limits.max_running_requests, limits.num_pages)
    for count in sorted({2, 3, *(2**power for power in range(2, most.bit_length())), most}):
        if count <= most:
            yield [prompt(min(4, room)) for _ in range(count)]


def _files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
