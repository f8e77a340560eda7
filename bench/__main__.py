"""Measure engines on the same workload, in turns, and write what came out.

    python -m bench offline --model .models/SmolLM2-135M-Instruct --requests 16 --inputs 32:96 --outputs 64:64
    python -m bench latency --model .models/SmolLM2-135M-Instruct
    python -m bench step --model DIR --requests 64 --inputs 1024 --outputs 257 --dtype bfloat16

`offline` gives all requests at once and reports output tokens over wall time; `latency` is one request alone;
`step` is one decode step: what the outputs after the first take, over their number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import Endpoint, Engine, MiniSGLang, Transformers
from bench.workload import Workload, uniform
from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError

Range = tuple[int, int]


def main() -> None:
    args = _parse()
    workload = uniform(
        args.seed, args.requests, args.inputs, args.outputs, ModelConfig.load(args.model).vocab_size
    )
    workloads = [workload] if args.command != "step" else [workload, workload.first_tokens()]
    seconds = _measure(_engines(args), workloads, args.runs)
    rows = [
        report.Row(name, times[0], args.requests, workload.input_tokens, workload.output_tokens)
        for name, times in seconds.items()
    ]
    steps = {name: step_ms(workload, *times) for name, times in seconds.items() if len(times) == 2}
    model = args.model.resolve().name
    report.print_table(
        f"{model}: {args.requests} request(s), {workload.input_tokens} tokens in, {workload.output_tokens} out, "
        f"temperature {args.temperature:g}, {args.runs} runs",
        rows,
    )
    for name, milliseconds in steps.items():
        print(f"  {name}: a decode step takes {milliseconds:.3f} ms")
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "url", "model")}
    path = args.out or Path(__file__).parent / "results" / f"{args.command}-{model}-{args.requests}.json"
    report.write(path, [report.as_json(row, steps.get(row.engine)) for row in rows], {"model": model} | settings)


def step_ms(workload: Workload, whole: list[float], first: list[float]) -> float:
    """Milliseconds of a decode step: the whole workload less its first tokens, in medians, over the steps."""
    steps = max(workload.output_lengths) - 1
    return (statistics.median(whole) - statistics.median(first)) / steps * 1000


def _measure(
    builders: dict[str, Callable[[], Engine]], workloads: list[Workload], runs: int
) -> dict[str, list[list[float]]]:
    """Wall seconds of each run of each workload. The engines take turns, so that a change of the machine's mood
    meets them all.
    """
    engines = {name: build() for name, build in builders.items()}
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in workloads] for name in engines}
    for run in range(runs + 1):
        for name, engine in engines.items():
            for workload, times in zip(workloads, seconds[name], strict=True):
                started = time.perf_counter()
                engine.run(workload)
                taken = time.perf_counter() - started
                print(f"{name}: {'warm-up' if run == 0 else f'run {run}'} {taken:.3f} s", file=sys.stderr)
                if run:
                    times.append(taken)
    for engine in engines.values():
        engine.close()
    return seconds


def _engines(args: argparse.Namespace) -> dict[str, Callable[[], Engine]]:
    options: dict[str, Any] = {"dtype": args.dtype} | json.loads(args.options)
    known: dict[str, Callable[[], Engine]] = {
        "minisgl": partial(MiniSGLang, str(args.model), options, args.temperature),
        "transformers": partial(Transformers, str(args.model), args.dtype),
    }
    if args.url:
        known["url"] = partial(Endpoint, args.url, None)
    wanted = args.engine or ["minisgl", "transformers"]
    return {name: known[name] for name in wanted if name in known}


def _range(text: str) -> Range:
    low, _, high = text.partition(":")
    pair = int(low), int(high or low)
    if not 1 <= pair[0] <= pair[1]:
        raise argparse.ArgumentTypeError(f"'{text}': LOW:HIGH with 1 <= LOW <= HIGH is expected")
    return pair


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text, requests, inputs, outputs in (
        ("offline", "all requests at once: throughput", 16, (32, 96), (64, 64)),
        ("latency", "one request alone", 1, (64, 64), (128, 128)),
        ("step", "one decode step of requests that began together", 1, (64, 64), (129, 129)),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--model", type=Path, required=True, help="a Hugging Face directory")
        command.add_argument(
            "--engine", action="append", choices=["minisgl", "transformers", "url"], help="may be repeated"
        )
        command.add_argument(
            "--url", help="for --engine url: an OpenAI endpoint, such as http://localhost:1919/v1"
        )
        command.add_argument("--requests", type=int, default=requests)
        command.add_argument("--inputs", type=_range, default=inputs, help="prompt tokens, LOW:HIGH")
        command.add_argument("--outputs", type=_range, default=outputs, help="generated tokens, LOW:HIGH")
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--runs", type=int, default=3, help="after one warm-up")
        command.add_argument("--temperature", type=float, default=0.0, help="this engine's, in process")
        command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
        command.add_argument("--options", default="{}", help="JSON: more arguments of minisgl.llm.LLM")
        command.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    if "url" in (args.engine or []) and not args.url:
        parser.error("--engine url needs --url")
    if args.url and "url" not in (args.engine or []):
        parser.error("--url needs --engine url")
    return args


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)
