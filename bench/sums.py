"""`sums`: what it takes GPUs to add up their parts of a step's messages, each way that the engine knows.

A layer of a tensor-parallel model sums twice, and normalizes the sum. So that is what is timed: a CUDA graph of
many sums with a norm after each, on every rank at once. When ranks divide the rows of a long step, sums are sent
beside the matrix products of the layer: then a sum takes what these take longer than without one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import report
from bench.arguments import MODEL_HELP, positive
from bench.divided import Layer, time_divided
from bench.dummy import model_path
from bench.figures import Figure
from bench.standard import Case
from minisgl.distributed import Communicator, Messages, connect
from minisgl.kernel import kernels_for
from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError

CALLS = 50
"""Sums in one graph."""
RUNS = 20
DTYPE = torch.bfloat16
EPS = 1e-6
DIVIDED = "divided rows"
Sum = Callable[[Tensor, Tensor, Tensor], object]


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--tp", type=int, default=0, help="GPUs (default: all of this machine)")
    parser.add_argument("--tokens", default="1,4,8,16,32,64,128,208,256,512", help="of a step, with commas")
    parser.add_argument("--runs", type=positive, default=RUNS)
    report.add_out(parser)


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    gpus = torch.cuda.device_count()
    if gpus < 2 or args.tp > gpus or args.tp == 1:
        given = f"--tp {args.tp}: " if args.tp else ""
        raise UserError(f"{given}this machine has {gpus} GPUs, and a sum takes two")
    args.tp = args.tp or gpus
    try:
        tokens = [int(count) for count in args.tokens.split(",")]
    except ValueError:
        parser.error(f"--tokens {args.tokens}: numbers with commas are expected")
    config = ModelConfig.load(args.model)
    results = measure(config, args.tp, tokens, args.runs)
    print(
        f"\nA sum over {args.tp} GPUs with the norm after it, {config.hidden_size} numbers a token, microseconds"
    )
    ways = list(dict.fromkeys(way for result in results for way in result["microseconds"]))
    print(f"  {'tokens':>6}{'KB':>9}" + "".join(f"{way:>18}" for way in ways))
    for result in results:
        found = result["microseconds"]
        times = "".join(f"{found[way]:>18.1f}" if way in found else f"{'':>18}" for way in ways)
        print(f"  {result['tokens']:>6}{result['bytes'] / 1e3:>9.1f}{times}")
    report.save(args, f"sums-tp{args.tp}", results)


def measure(config: ModelConfig, tp: int, tokens: list[int], runs: int) -> list[dict[str, Any]]:
    """For each number of tokens: bytes of the message, and microseconds of each way on the slowest rank."""
    context = multiprocessing.get_context("spawn")
    width = -(-config.vocab_size // tp)
    messages = Messages(config.hidden_size, width, 16, DTYPE, max(tokens))
    layer = Layer.of(config, tp)
    with tempfile.TemporaryDirectory() as directory, context.Pool(tp) as pool:
        meeting = str(Path(directory) / "rendezvous")
        each = pool.starmap(
            _rank, [(rank, tp, meeting, messages, layer, tokens, runs) for rank in range(tp)], chunksize=1
        )
    return [
        {
            "tokens": count,
            "bytes": count * config.hidden_size * DTYPE.itemsize,
            "microseconds": {way: round(max(rank[i][way] for rank in each), 2) for way in each[0][i]},
        }
        for i, count in enumerate(tokens)
    ]


def of_cases(config: ModelConfig, tp: int, cases: Sequence[Case], budget: int) -> dict[str, Figure]:
    """Of each decode step and each prefill among `cases`, what its sums take, as the engine does them.

    `budget`: tokens of a chunk.
    """
    tokens = {
        case.name: case.requests if case.command == "step" else min(case.requests * case.inputs[0], budget)
        for case in cases
        if case.command in ("step", "prefill")
    }
    counts = sorted(set(tokens.values()))
    measured = {line["tokens"]: line["microseconds"] for line in measure(config, tp, counts, RUNS)}
    found = {count: times.get(DIVIDED, times["peer memory"]) for count, times in measured.items()}
    figures = {}
    for case in cases:
        if case.name in tokens:
            steps = 1 if case.command == "step" else case.requests * case.inputs[0] / tokens[case.name]
            milliseconds = found[tokens[case.name]] * 2 * config.num_layers * steps / 1e3
            text = f"  its sums over {tp} GPUs, each with the norm after it"
            figures[case.name] = Figure(f"{case.name}-sums", text, milliseconds, "ms")
    return figures


def _rank(
    rank: int, size: int, meeting: str, messages: Messages, layer: Layer, tokens: list[int], runs: int
) -> list[dict[str, float]]:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    comms = {
        "peer memory": connect(rank, size, meeting, device, messages=messages),
        "NCCL": connect(rank, size, f"{meeting}-nccl", device),
        "torch.distributed": connect(rank, size, f"{meeting}-torch", device, pynccl=False),
    }
    found = [{way: _time(_way(comm), count, messages, runs) for way, comm in comms.items()} for count in tokens]
    for count, times in zip(tokens, found, strict=True):
        divided = time_divided(comms["peer memory"], layer, count, runs)
        if divided is not None:
            times[DIVIDED] = divided
    return found


def _way(comm: Communicator) -> Sum:
    def add(x: Tensor, residual: Tensor, weight: Tensor) -> None:
        if comm.add_rms_norm(x, residual, weight, EPS) is None:
            kernels_for(x).add_rms_norm(comm.all_reduce(x), residual, weight, EPS)

    return add


def _time(add: Sum, tokens: int, messages: Messages, runs: int) -> float:
    """Microseconds of one sum, the median over `runs` replays of a graph."""
    x = torch.zeros(tokens, messages.hidden_size, dtype=DTYPE, device="cuda")
    residual, weight = torch.zeros_like(x), torch.ones_like(x[0])
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            add(x, residual, weight)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(CALLS):
                add(x, residual, weight)
        graph.replay()
        times = []
        for _ in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3 / CALLS)
    return float(statistics.median(times))
