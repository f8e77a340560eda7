"""`soak`: minutes of random load on scheduler and engine in this process, in waves that rise and drain.

Requests of all lengths and samplings come, some under prefixes that others share. Some are aborted in the queue,
while their prompt is read, or while they decode. Whenever a wave has drained, every request must have been
answered or aborted, every page must be free or in the prefix tree, and memory is measured: after a first minute it
must not grow.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import report
from bench.arguments import MODEL_HELP
from bench.configurations import configurations
from bench.dummy import model_path
from bench.memory import Series, sample, trends
from minisgl.core.config import EngineLimits
from minisgl.core.sampling import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.message import Abort, GrammarBuilt, MasksBuilt, NewRequest, Round
from minisgl.models.config import ModelConfig
from minisgl.scheduler.loop import normal_loop, overlap_loop
from minisgl.scheduler.scheduler import Scheduler

BOUNDS = {"rss": 32.0, "allocated": 16.0, "reserved": 256.0}
"""MiB that memory may vary, and grow, after `WARM_UP_SECONDS`, when nothing runs: of this process, of tensors on
the GPU, and what torch's allocator keeps for more."""
CPU_BOUNDS = BOUNDS | {"rss": 256.0}
"""Where there is no GPU: oneDNN keeps what it has set up for each shape that it has met."""
WARM_UP_SECONDS = 60.0
CHECK_ROUNDS = 200
"""Rounds of the loop between two checks of the bookkeeping under load."""
ABORTED = 0.2
"""Share of the requests that are aborted, if they live long enough."""


class Failed(AssertionError):
    """Something that must hold did not."""


@dataclass
class Counts:
    """What has happened so far."""

    requests: int = 0
    stopped: int = 0
    """Ended by a token that ends."""
    full: int = 0
    """Ended at their length."""
    aborted_waiting: int = 0
    aborted_prefill: int = 0
    aborted_decode: int = 0
    output_tokens: int = 0
    drains: int = 0


@dataclass
class _Live:
    """A request that has not ended."""

    params: SamplingParams
    tokens: int
    abort_round: int | None
    """The round of the loop in which it is aborted."""


class RandomLoad:
    """A loop's endpoint that makes up requests, and checks what comes back."""

    def __init__(
        self, scheduler: Scheduler, limits: EngineLimits, *, seconds: float, wave: float, seed: int
    ) -> None:
        self.counts = Counts()
        self.series = Series()
        self._scheduler = scheduler
        self._limits = limits
        self._wave_seconds = wave
        self._draw = random.Random(seed)
        self._prefixes = [self._tokens(self._length(limits.max_seq_len // 2)) for _ in range(8)]
        self._live: dict[int, _Live] = {}
        self._round = 0
        self._start = time.monotonic()
        self._end = self._start + seconds
        self._next_line = self._start + 60.0
        self._begin_wave()

    # ---- the endpoint ----

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:  # noqa: ARG002
        """New requests while the wave lasts, and the aborts that are due. `block`: the loop has nothing to do."""
        self._round += 1
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line += 60.0
            self._print()
        if self._round % CHECK_ROUNDS == 0:
            self._scheduler.check()
        if block and now >= self._wave_end:
            self._drained(now - self._start)
            if now >= self._end:
                return Round(messages=[], stop=True)
            self._begin_wave()
        messages: list[NewRequest | Abort | GrammarBuilt | MasksBuilt] = list(self._aborts())
        if now < self._wave_end:
            room = self._target - len(self._live)
            few = min(room, self._draw.choice((0, 0, 1, 1, 2, 8)))
            messages += [self._request() for _ in range(max(few, int(block)))]
        elif now > self._wave_end + 300:
            raise Failed(f"{len(self._live)} requests are not answered 300 s after the last one came")
        return Round(messages=messages)

    def send(self, scheduler: Scheduler) -> None:
        """Count the tokens of a step, and see that each belongs to a request that wants it."""
        output = scheduler.take_output()
        if output is None:
            return
        for uid, token in zip(output.uids, output.tokens, strict=True):
            if uid not in self._live:
                raise Failed(f"request {uid} has got a token after its end")
            if not 0 <= token < self._limits.vocab_size:
                raise Failed(f"request {uid} has got token {token}, which is not in the vocabulary")
            self._live[uid].tokens += 1
            self.counts.output_tokens += 1
        for uid, reason in zip(output.finished_uids, output.finish_reasons, strict=True):
            self._ended(uid, reason)

    def _ended(self, uid: int, reason: str) -> None:
        live = self._live.pop(uid, None)
        if live is None:
            raise Failed(f"request {uid} has ended twice")
        if reason == "length":
            self.counts.full += 1
            if live.tokens != live.params.max_tokens:
                raise Failed(f"request {uid} has {live.tokens} tokens, but wanted {live.params.max_tokens}")
        elif reason == "stop":
            self.counts.stopped += 1
        elif live.abort_round is None or live.abort_round > self._round:
            raise Failed(f"request {uid} was given up by the engine")

    # ---- what it makes up ----

    def _begin_wave(self) -> None:
        """As many requests at once as it takes to fill the rows several times, or a few, or one."""
        most = self._limits.max_running_requests
        self._target = self._draw.choice((1, 4, most // 2, most, 2 * most)) or 1
        self._wave_end = min(time.monotonic() + self._draw.uniform(0.3, 1.7) * self._wave_seconds, self._end)

    def _length(self, most: int) -> int:
        """Log-uniform in ``1 .. most``: short ones are common, the longest still come."""
        return min(int(math.exp(self._draw.uniform(0, math.log(most + 1)))), most)

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(self._limits.vocab_size) for _ in range(count)]

    def _request(self) -> NewRequest:
        draw, longest, uid = self._draw, self._limits.max_seq_len, self.counts.requests
        prompt = self._tokens(self._length(longest // 2 - 1))
        if draw.random() < 0.5:
            prefix = draw.choice(self._prefixes)
            prompt = prefix[: draw.choice((len(prefix), self._length(len(prefix))))] + prompt
        params = SamplingParams(
            max_tokens=self._length(min(longest - len(prompt), max(longest // 2, 1))),
            temperature=draw.choice((0.0, 0.0, 0.6, 1.0, 2.0)),
            top_k=draw.choice((0, 0, 0, 1, 20, 1000)),
            top_p=draw.choice((1.0, 1.0, 0.9, 0.5)),
            min_p=draw.choice((0.0, 0.0, 0.05)),
            presence_penalty=0.5 if uid % 5 == 1 else 0.0,
            logit_bias=((5, -2.0), (6, 2.0)) if uid % 7 == 2 else (),
            logprobs=5 if uid % 6 == 3 else None,
            seed=draw.getrandbits(63),
            stop_token_ids=tuple(self._tokens(draw.choice((0, 0, 4)))),
            ignore_eos=draw.random() < 0.5,
        )
        abort = self._round + self._length(200) - 1 if draw.random() < ABORTED else None
        self._live[uid] = _Live(params, 0, abort)
        self.counts.requests += 1
        return NewRequest(uid=uid, token_ids=prompt, params=params)

    def _aborts(self) -> list[NewRequest | Abort]:
        now, live = self._round, self._live.items()
        due = [uid for uid, one in live if one.abort_round is not None and one.abort_round <= now]
        for uid in due:
            request = self._scheduler.requests.get(uid)
            if request is not None:  # the loop may hold a result that ends it
                name = f"aborted_{request.state.value}"
                setattr(self.counts, name, getattr(self.counts, name) + 1)
        return [Abort(uid=uid) for uid in due]

    # ---- what must hold ----

    def _drained(self, seconds: float) -> None:
        """Nothing runs: everything must be back where it belongs."""
        self._scheduler.check()
        stats = self._scheduler.stats
        if self._live or stats.running or stats.queued:
            raise Failed(f"{len(self._live)} requests are unanswered, {stats.running} run, {stats.queued} wait")
        if stats.used_pages or self._scheduler.cache.available != stats.total_pages:
            raise Failed(f"{stats.used_pages} of {stats.total_pages} pages are lost")
        self.counts.drains += 1
        self.series.add(seconds, sample())

    def _print(self) -> None:
        counts, stats, memory = self.counts, self._scheduler.stats, sample()
        aborted = counts.aborted_waiting + counts.aborted_prefill + counts.aborted_decode
        print(
            f"{time.monotonic() - self._start:6.0f} s: {counts.requests:,} requests, {len(self._live)} live, "
            f"{aborted:,} aborted, {counts.output_tokens:,} tokens, {stats.steps:,} steps, "
            f"{stats.retractions:,} retractions, {stats.evicted_pages:,} pages evicted; "
            + ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in memory.items()),
            flush=True,
        )


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--wave", type=float, default=5, help="seconds of an average wave of requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--options", default="{}", help="JSON: fields of EngineConfig and SchedulerConfig")
    text = f"JSON: other MiB than {json.dumps(BOUNDS)} on a GPU, {json.dumps(CPU_BOUNDS)} on a CPU"
    parser.add_argument("--bounds", default="{}", help=text)
    report.add_out(parser)


def main(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> None:
    options = json.loads(args.options)
    on_gpu = configurations(args.model, options)[0].device == "cuda"
    result = soak(
        args.model,
        options,
        seconds=args.minutes * 60,
        wave=args.wave,
        seed=args.seed,
        bounds=(BOUNDS if on_gpu else CPU_BOUNDS) | json.loads(args.bounds),
    )
    report.save(args, "soak", result)
    print("\n".join(result["failures"]) or "nothing failed")
    if result["failures"]:
        sys.exit(1)


def soak(
    model: Path, options: dict[str, Any], *, seconds: float, wave: float, seed: int, bounds: dict[str, float]
) -> dict[str, Any]:
    """Run it. What failed is under ``failures``, a line each; empty when all held."""
    engine_config, scheduler_config = configurations(model, options)
    config = ModelConfig.load(model)
    engine = Engine(engine_config, config)
    scheduler = Scheduler(scheduler_config, engine.limits, config.eos_ids)
    load = RandomLoad(scheduler, engine.limits, seconds=seconds, wave=wave, seed=seed)
    failures = []
    try:
        (overlap_loop if scheduler_config.overlap else normal_loop)(scheduler, engine, load)
        engine.close()
    except Exception as error:  # whatever it is, it is what was looked for
        failures.append("".join(traceback.format_exception(error)).strip())
    found = trends(load.series, after=min(WARM_UP_SECONDS, seconds / 4))
    for name, trend in found.items():
        bound = bounds[name]
        if trend.spread > bound or trend.growth > bound:
            failures.append(
                f"memory is not flat: {name} grew by {trend.growth:.1f} MiB and varied by {trend.spread:.1f} MiB "
                f"within {trend.seconds:.0f} s; at most {bound:g} MiB are allowed"
            )
    counts = Counter(asdict(load.counts))
    print(f"{dict(counts)}\n{ {name: asdict(trend) for name, trend in found.items()} }")
    return {
        "failures": failures,
        "seconds": seconds,
        "counts": asdict(load.counts),
        "scheduler": msgspec.to_builtins(scheduler.stats),
        "memory_mib": load.series.as_json(),
        "trends": {name: asdict(trend) | {"bound": bounds[name]} for name, trend in found.items()},
    }
