"""`online`: requests that arrive whether or not the ones before are answered, at rising rates.

Every prompt begins with the same system prompt, so that a prefix cache reads only the question. The report says
what that share predicts, from prefill and decode rates measured on the same server, beside what was seen.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench import load, report
from bench.arguments import MODEL_HELP, positive
from bench.dummy import model_path
from bench.engines import served
from bench.load import Answer, Load, Target
from bench.server import Server
from bench.workload import Workload, arrivals, percentile, shared_prefix, uniform
from minisgl.models.config import ModelConfig

AUTO_SHARES = (0.25, 0.5, 0.7, 0.85, 1.0, 1.2)
"""Without ``--rates``: these shares of the rate at which the server is predicted to be full."""
KEEPS_UP = 0.95
"""A server that answers at least this share of what is offered is not full."""


@dataclass(frozen=True)
class Shape:
    """The parts of a request, in tokens."""

    prefix: int
    question: int
    answer: int
    vocab_size: int

    @property
    def prompt(self) -> int:
        return self.prefix + self.question

    def workload(self, seed: int, requests: int) -> Workload:
        return shared_prefix(seed, requests, self.prefix, self.question, self.answer, self.vocab_size)


@dataclass(frozen=True)
class Capacity:
    """What a server does when it is full, over HTTP."""

    prefill: float
    """Prompt tokens a second, none of them cached."""
    decode: float
    """Output tokens a second of as many requests as run at once."""
    first_token: float
    """Seconds to the first token of a prompt of one token, alone: what a request costs beside its tokens."""

    def rate(self, prompt_tokens: float, answer: int) -> float:
        """Requests a second that it can answer, of which each computes so many tokens of its prompt."""
        return 1 / (prompt_tokens / self.prefill + (answer - 1) / self.decode)

    def time_to_first_token(self, prompt_tokens: float) -> float:
        """Seconds, of a request alone."""
        return self.first_token + prompt_tokens / self.prefill


@dataclass(frozen=True)
class Point:
    """One rate. Times in milliseconds."""

    rate: float
    """Requests a second, as asked for."""
    offered: float
    """And as the draw of the arrivals made it, from the first to the last."""
    requests: int
    failed: int
    achieved: float
    """Requests answered a second, from the first answer's end to the last one's."""
    sustained: float
    """And in the second half of the time in which requests came: neither filling up nor running dry."""
    output_tokens_per_second: float
    first_token_p50: float
    first_token_p99: float
    per_token_p50: float
    """Of each request, the mean time of its tokens after the first."""
    per_token_p99: float
    longest_gap_p99: float
    """Of each request, the longest time between two arrivals of tokens."""
    cached_share: float
    """Of the prompt tokens, those that the server says were cached."""
    tokens_per_event: float
    """Above 1, the server puts several tokens into an event because it is behind."""
    client_cpu: float
    """Cores that the busiest client process took: near 1, the client is what was measured."""
    client_late_p99: float
    """How late requests left."""
    server_cpu: dict[str, float]
    """Cores that each process of the server took."""
    errors: list[str]


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--url", help="measure this OpenAI endpoint, such as http://localhost:1919/v1")
    parser.add_argument("--cache", default="radix,naive", help="servers to start and measure, with commas")
    parser.add_argument("--server-options", default="", help="more options of python -m minisgl")
    parser.add_argument("--rates", type=numbers, help="requests a second, with commas (default: up to full)")
    parser.add_argument("--seconds", type=float, default=20, help="of each rate")
    parser.add_argument("--arrivals", choices=["poisson", "fixed"], default="poisson")
    parser.add_argument("--prefix", type=int, default=1000, help="tokens of the system prompt that all share")
    parser.add_argument("--question", type=positive, default=200, help="tokens that follow, of each its own")
    parser.add_argument("--answer", type=positive, default=200, help="tokens generated")
    parser.add_argument("--burst", type=positive, default=256, help="requests at once that fill the server")
    parser.add_argument("--clients", type=positive, default=2, help="processes that generate the load")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait after the last request")
    parser.add_argument("--seed", type=int, default=1)
    report.add_out(parser)


def main(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> None:
    report.save(args, "online", measure(args, shape_of(args)))


def shape_of(args: argparse.Namespace) -> Shape:
    return Shape(args.prefix, args.question, args.answer, ModelConfig.load(args.model).vocab_size)


def measure(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """Every server in turn, printed as it comes. The prediction is from the last one's capacity: that is the
    engine without a cache, where both are measured.
    """
    found: dict[str, tuple[Capacity, list[Point]]] = {}
    if args.url:
        target = served(args.url)
        found[target.model] = _measure_server("endpoint", target, args, shape, dict)
    for cache in [] if args.url else args.cache.split(","):
        with Server(args.model, ["--cache", cache, *shlex.split(args.server_options)]) as server:
            print(f"\n{cache}: ready after {server.ready():.1f} s", flush=True)
            found[cache] = _measure_server(cache, server.target, args, shape, server.cpu_seconds)
    capacity = list(found.values())[-1][0]
    prediction = [row for name, (_, points) in found.items() for row in predict(name, capacity, points, shape)]
    print_prediction(prediction)
    return {
        "engines": [
            {"name": name, "capacity": asdict(capacity), "rates": [asdict(point) for point in points]}
            for name, (capacity, points) in found.items()
        ],
        "prediction": prediction,
    }


def _measure_server(
    name: str, target: Target, args: argparse.Namespace, shape: Shape, cpu_seconds: Callable[[], dict[str, float]]
) -> tuple[Capacity, list[Point]]:
    capacity = measure_capacity(target, args, shape)
    print(
        f"{name}: {capacity.prefill:,.0f} prompt tokens/s, {capacity.decode:,.0f} output tokens/s of {args.burst} "
        f"requests, {capacity.first_token * 1e3:.1f} ms to the first token of a one-token prompt"
    )
    rates = args.rates
    if rates is None:
        cached = shape.prefix if name == "radix" else 0
        full = capacity.rate(shape.prompt - cached, shape.answer)
        rates = [round(share * full, 1 if full >= 10 else 3) for share in AUTO_SHARES]
    print_header()
    points = []
    for index, rate in enumerate(rates):
        due = arrivals(args.seed + index, rate, args.seconds, poisson=args.arrivals == "poisson")
        workload = shape.workload(args.seed + 1000 * (index + 1), len(due))
        before, began = cpu_seconds(), time.monotonic()
        seen = load.run(target, _bodies(target, workload, due), clients=args.clients, patience=args.patience)
        wall = time.monotonic() - began
        cores = {process: (after - before[process]) / wall for process, after in cpu_seconds().items()}
        points.append(to_point(rate, seen, cores))
        print_point(points[-1])
    return capacity, points


def _bodies(target: Target, workload: Workload, due: list[float]) -> list[tuple[float, str]]:
    return [
        (time, target.completion(prompt, length, **load.STREAMED))
        for time, prompt, length in zip(due, workload.prompts, workload.output_lengths, strict=True)
    ]


def measure_capacity(target: Target, args: argparse.Namespace, shape: Shape) -> Capacity:
    """From bursts of prompts that share nothing, so that no cache helps: once to warm up, once to measure."""
    vocab, prompt = shape.vocab_size, shape.prompt

    def burst(seed: int, requests: int, length: int, tokens: int) -> list[Answer]:
        workload = uniform(seed, requests, (length, length), (tokens, tokens), vocab)
        seen = load.run(target, _bodies(target, workload, [0.0] * requests), clients=args.clients, patience=600)
        assert len(seen.finished) == requests, next(answer.error for answer in seen.answers if answer.error)
        return seen.answers

    for warm in (True, False):
        seed = args.seed * 10 + (5 if warm else 0)
        reads = max(a.last for a in burst(seed + 1, max(args.burst // 4, 1), prompt, 1))
        whole = max(a.last for a in burst(seed + 2, args.burst, prompt, shape.answer))
        alone = [burst(seed * 100 + n, 1, 1, 2)[0].time_to_first_token for n in range(1 if warm else 5)]
    prefill = max(args.burst // 4, 1) * prompt / reads
    decoding = whole - args.burst * prompt / prefill
    return Capacity(prefill, args.burst * (shape.answer - 1) / max(decoding, 1e-9), percentile(alone, 0.5))


def to_point(rate: float, seen: Load, server_cpu: dict[str, float]) -> Point:
    """What one rate came to."""
    finished = seen.finished
    errors = sorted({answer.error for answer in seen.answers if answer.error})
    if not finished:
        raise RuntimeError(f"no request was answered at {rate} requests/s: {errors[:3]}")
    achieved = _pace([answer.last for answer in finished], rate)

    def milliseconds(values: list[float], share: float) -> float:
        return round(percentile(values, share) * 1e3, 3)

    first = [answer.time_to_first_token for answer in finished]
    per_token = [answer.time_per_output_token for answer in finished]
    tokens = sum(answer.tokens for answer in finished)
    return Point(
        rate=rate,
        offered=round(_pace([answer.due for answer in seen.answers], rate), 3),
        requests=len(seen.answers),
        failed=len(seen.answers) - len(finished),
        achieved=round(achieved, 3),
        sustained=round(_sustained(seen), 3),
        output_tokens_per_second=round(achieved * tokens / len(finished), 1),
        first_token_p50=milliseconds(first, 0.5),
        first_token_p99=milliseconds(first, 0.99),
        per_token_p50=milliseconds(per_token, 0.5),
        per_token_p99=milliseconds(per_token, 0.99),
        longest_gap_p99=milliseconds([answer.longest_gap for answer in finished], 0.99),
        cached_share=round(sum(a.cached_tokens for a in finished) / sum(a.prompt_tokens for a in finished), 4),
        tokens_per_event=round(tokens / max(sum(answer.events - 1 for answer in finished), 1), 2),
        client_cpu=round(seen.client_cpu, 3),
        client_late_p99=milliseconds([answer.sent - answer.due for answer in seen.answers], 0.99),
        server_cpu={process: round(cores, 3) for process, cores in server_cpu.items()},
        errors=errors[:5],
    )


def _pace(times: list[float], otherwise: float) -> float:
    """Of so many events, how many a second, from the first to the last; of fewer than two, `otherwise`."""
    span = max(times) - min(times)
    return (len(times) - 1) / span if span > 0 else otherwise


def _sustained(seen: Load) -> float:
    end = max(answer.due for answer in seen.answers)
    return sum(end / 2 < answer.last <= end for answer in seen.finished) / max(end / 2, 1e-9)


def predict(name: str, capacity: Capacity, points: list[Point], shape: Shape) -> list[dict[str, Any]]:
    """What the tokens that the cache leaves to compute say of the rate at which the server is full, and of the
    time to the first token while it is not, beside what was measured.
    """
    computed = shape.prompt * (1 - points[-1].cached_share)
    full = capacity.rate(computed, shape.answer)
    busiest = max(points, key=lambda point: point.offered)
    saturated = busiest.sustained < KEEPS_UP * busiest.offered
    reached = busiest.sustained if saturated else max(point.achieved for point in points)
    quiet = min(points, key=lambda point: point.rate)
    return [
        {"engine": name, "what": "prompt tokens computed", "predicted": None, "measured": round(computed, 1)},
        {
            "engine": name,
            "what": "requests/s when full" if saturated else "requests/s, not full yet",
            "predicted": round(full, 3),
            "measured": reached,
        },
        {
            "engine": name,
            "what": f"ms to the first token at {quiet.rate:g} requests/s",
            "predicted": round(capacity.time_to_first_token(computed) * 1e3, 3),
            "measured": quiet.first_token_p50,
        },
    ]


def print_header() -> None:
    print(
        f"  {'':>9}{'':>10}{'':>10}{'output':>10}{'first token ms':>18}{'per token ms':>16}{'gap ms':>9}"
        f"{'cached':>8}{'tokens/':>9}{'client':>14}\n"
        f"  {'offered/s':>9}{'done/s':>10}{'steady/s':>10}{'tokens/s':>10}{'p50':>9}{'p99':>9}"
        f"{'p50':>8}{'p99':>8}{'p99':>9}{'share':>8}{'event':>9}{'cpu':>6}{'late':>8}  server cores"
    )


def print_point(point: Point) -> None:
    busy = {name.rpartition(".")[2]: cores for name, cores in point.server_cpu.items() if cores > 0.01}
    cores = ", ".join(f"{name} {used:.2f}" for name, used in busy.items())
    print(
        f"  {point.offered:>9.2f}{point.achieved:>10.2f}{point.sustained:>10.2f}"
        f"{point.output_tokens_per_second:>10,.0f}{point.first_token_p50:>9.1f}{point.first_token_p99:>9.1f}{point.per_token_p50:>8.2f}"
        f"{point.per_token_p99:>8.2f}{point.longest_gap_p99:>9.1f}{point.cached_share:>8.3f}"
        f"{point.tokens_per_event:>9.2f}{point.client_cpu:>6.2f}{point.client_late_p99:>8.1f}  {cores}"
        + (f"\n    {point.failed} of {point.requests} failed: {'; '.join(point.errors)}" if point.failed else ""),
        flush=True,
    )


def print_prediction(rows: list[dict[str, Any]]) -> None:
    print("\nWhat the share of the prompt that is cached predicts, and what was measured")
    for row in rows:
        predicted = "" if row["predicted"] is None else f"{row['predicted']:,.1f}"
        print(f"  {row['engine']:<12}{row['what']:<44}{predicted:>10}{row['measured']:>12,.1f}")


def numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}': numbers above 0, with commas between, are expected")
    return numbers
