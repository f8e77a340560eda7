"""`offline`, `latency`, `step`, `prefill`: a workload given at once, timed from first request to last token.

`offline` reports output tokens over wall time; `latency` is one request alone; `step` is one decode step: what the
outputs after the first take, over their number; `prefill` reads prompts and generates one token of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any

import msgspec

from bench import report
from bench.arguments import add_common, floor_of, length_range, positive
from bench.dummy import weightless
from bench.engines import Endpoint, Engine, MiniSGLang
from bench.figures import Figure, peers_of, print_figures
from bench.floors import Floor
from bench.standard import Case, case_of
from bench.workload import Workload, uniform
from minisgl.core.sampling import SamplingParams
from minisgl.models.config import ModelConfig

DEFAULTS = {
    "offline": (16, (32, 96), (64, 64)),
    "latency": (1, (64, 64), (128, 128)),
    "step": (1, (64, 64), (129, 129)),
    "prefill": (4, (256, 256), (1, 1)),
}
"""Requests, prompt tokens, generated tokens."""


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    requests, inputs, outputs = DEFAULTS[command]
    add_common(parser)
    parser.add_argument(
        "--engine", action="append", choices=["minisgl", "transformers", "url"], help="may be repeated"
    )
    parser.add_argument("--url", help="for --engine url: an OpenAI endpoint, such as http://localhost:1919/v1")
    parser.add_argument("--requests", type=positive, default=requests)
    parser.add_argument("--inputs", type=length_range, default=inputs, help="prompt tokens, LOW:HIGH")
    parser.add_argument("--outputs", type=length_range, default=outputs, help="generated tokens, LOW:HIGH")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=positive, default=3, help="after one warm-up")
    parser.add_argument("--temperature", type=float, default=0.0, help="this engine's, in process")
    parser.add_argument(
        "--sampling",
        action="append",
        type=sampling,
        default=[],
        metavar="JSON",
        help="this engine's, in process: more fields of SamplingParams; repeated, requests take them in turn",
    )


def sampling(text: str) -> dict[str, Any]:
    """Fields of `SamplingParams`, checked."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        unknown = set(fields) - set(SamplingParams.__struct_fields__)
        if unknown:
            raise argparse.ArgumentTypeError(f"'{text}': no field of SamplingParams: {', '.join(sorted(unknown))}")
        msgspec.convert(fields, SamplingParams)
    except msgspec.MsgspecError as error:
        raise argparse.ArgumentTypeError(f"'{text}': {error}") from None
    return fields


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    wanted = args.engine or ["minisgl"]
    if ("url" in wanted) != bool(args.url):
        parser.error("--engine url and --url need each other")
    model = ModelConfig.load(args.model)
    options = {"dtype": args.dtype, "dummy_weight": weightless(args.model)} | json.loads(args.options)
    case = case_of(args.command, args.requests, args.inputs, args.outputs, args.seed, args.temperature)
    if args.sampling:
        told = " or ".join(json.dumps(fields) for fields in args.sampling)
        case = replace(case, name=f"{case.name}-sampling", text=f"{case.text}, sampling {told}")
    builders: dict[str, Callable[[], Engine]] = {
        "minisgl": partial(MiniSGLang, str(args.model), options, args.temperature, args.sampling),
        # Its import takes seconds that the other engines need not wait for.
        "transformers": lambda: import_module("bench.transformers_engine").Transformers(
            str(args.model), args.dtype
        ),
        "url": partial(Endpoint, args.url),
    }
    engines = {name: builders[name]() for name in wanted}
    floor = floor_of(args, model, options, report.gpu_name())
    results = run_case(case, engines, model, floor, args.runs, options, list(map(json.dumps, args.sampling)))
    for engine in engines.values():
        engine.close()
    report.save(args, case.name, results)


def run_case(
    case: Case,
    engines: Mapping[str, Engine],
    model: ModelConfig,
    floor: Floor | None,
    runs: int,
    options: Mapping[str, Any],
    kinds: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure, print a table, and return a result for each engine. No `floor`: none is known of this machine.

    `options`: the engines', as far as they say what other engines can be compared with. `kinds`: what requests ask
    for in turn; of several, a step has a figure each.
    """
    workload = uniform(case.seed, case.requests, case.inputs, case.outputs, model.vocab_size)
    workloads = [workload] if case.command != "step" else [workload, workload.first_tokens()]
    measured = measure(engines, workloads, runs)
    results = []
    for name, every in measured.items():
        times = [of_one.whole for of_one in every]
        peers = peers_of(model, case.name, report.gpu_name(), options)
        figure = to_figure(case, workload, times, floor, peers)
        apart = []
        asked = kinds[: len(every[0].kinds[0])]  # there may be fewer requests than kinds
        if case.command == "step" and len(asked) > 1:
            for kind, text in enumerate(asked):
                own = [[ended[kind] for ended in of_one.kinds] for of_one in every]
                apart.append(to_figure(replace(case, name=text, text=f"of those with {text}"), workload, own))
        results.append(
            {
                "engine": name,
                "figure": figure.as_json(),
                "median_seconds": round(statistics.median(times[0]), 4),
                "seconds": [round(s, 4) for s in times[0]],
                "requests": case.requests,
                "input_tokens": workload.input_tokens,
                "output_tokens": workload.output_tokens,
                "output_tokens_per_second": round(workload.output_tokens / statistics.median(times[0]), 2),
            }
            | ({"kinds": [figure.as_json() for figure in apart]} if apart else {})
        )
        spread = f"{min(times[0]):.3f} to {max(times[0]):.3f} s in {runs} run(s)"
        rate = f"{results[-1]['output_tokens_per_second']:,.0f} output tokens/s"
        print_figures(
            f"{name}: {workload.input_tokens:,} tokens in, {workload.output_tokens:,} out; {spread}, {rate}",
            [figure, *apart],
        )
    return results


def to_figure(
    case: Case,
    workload: Workload,
    times: list[list[float]],
    floor: Floor | None = None,
    peers: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """The number that the case is about. `times`: wall seconds of the workload's runs, and for `step` those of its
    first tokens alone.
    """
    peers = dict(peers)
    lengths = [len(prompt) for prompt in workload.prompts]
    least = None if floor is None else floor.generate(lengths, workload.output_lengths)
    seconds = statistics.median(times[0])
    if case.command == "step":
        steps = max(workload.output_lengths) - 1
        value = (seconds - statistics.median(times[1])) / steps * 1e3
        bound = None if least is None else (least.weights + least.kv) / steps * 1e3
        return Figure(case.name, case.text, value, "ms", bound, peers)
    if case.command == "prefill":
        tokens = workload.input_tokens
        bound = None if least is None else tokens / least.total
        return Figure(case.name, case.text, tokens / seconds, "tokens/s", bound, peers)
    return Figure(case.name, case.text, seconds, "s", None if least is None else least.total, peers)


@dataclass
class Times:
    """Wall seconds of each run of a workload."""

    whole: list[float] = field(default_factory=list)
    kinds: list[list[float]] = field(default_factory=list)
    """What `Engine.run` returned."""


def measure(engines: Mapping[str, Engine], workloads: list[Workload], runs: int) -> dict[str, list[Times]]:
    """How long each workload takes each engine, after a warm-up. The engines take turns, so that a change of the
    machine's mood meets them all.
    """
    measured = {name: [Times() for _ in workloads] for name in engines}
    for run in range(runs + 1):
        for name, engine in engines.items():
            for workload, times in zip(workloads, measured[name], strict=True):
                started = time.perf_counter()
                kinds = engine.run(workload)
                taken = time.perf_counter() - started
                print(f"{name}: {'warm-up' if run == 0 else f'run {run}'} {taken:.3f} s", file=sys.stderr)
                if run:
                    times.whole.append(taken)
                    times.kinds.append(kinds)
    return measured
