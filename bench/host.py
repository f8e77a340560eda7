"""`host`: what the processor does for one steady decode step, while the GPU runs the one before.

The loop, the scheduler and the encoding of the output are the real ones. Once they launch on an executor that does
nothing, which shows their own time; once on the engine, which adds its launching, and shows how long the host then
waits for the device: as long as it waits, its work is hidden.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

from bench import report
from bench.arguments import MODEL_HELP, positive
from bench.configurations import configurations
from bench.dummy import model_path
from minisgl.core.batch import Batch, Executor, PendingStep, StepScores
from minisgl.core.config import EngineLimits, SchedulerConfig
from minisgl.core.sampling import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.message import NewRequest, Round, encode
from minisgl.models.config import ModelConfig
from minisgl.scheduler.loop import overlap_loop
from minisgl.scheduler.scheduler import Scheduler
from minisgl.utils.errors import UserError

PARTS = ("schedule", "launch", "complete", "output")
"""Choosing the batch; starting it; taking in the tokens of the one before; telling the detokenizer."""


@dataclass
class _Done:
    """A step that was never run: every token is 1."""

    count: int

    def tokens(self) -> list[int]:
        return [1] * self.count

    def scores(self) -> None:
        return None


class NoDevice:
    """An executor that takes no time."""

    def launch(self, batch: Batch) -> _Done:
        return _Done(len(batch.decode_rows) + sum(chunk.sample for chunk in batch.prefill))

    def idle(self) -> bool:
        return False


class Stopwatch:
    """Endpoint and executor of a loop: notes when it goes in and out of each.

    A turn of `overlap_loop` is: receive, schedule, launch, the tokens of the step before, complete, send.
    """

    def __init__(self, executor: Executor, requests: list[NewRequest], warm_up: int, steps: int) -> None:
        self._executor = executor
        self._arriving = requests
        self._batch = len(requests)
        self._skip = warm_up
        self._steps = steps
        self._seconds = dict.fromkeys((*PARTS, "wait"), 0.0)
        self._mark = 0.0
        self._steady = False
        self.turns: list[dict[str, float]] = []
        """Seconds of each part, and of the wait for the device, in each steady turn."""

    def receive(self, *, block: bool, patience: float = 0.0) -> Round:  # noqa: ARG002
        if block and not self._arriving:
            raise UserError(f"the KV pool does not hold {self._batch} requests at once until they are measured")
        arrived = Round(messages=list(self._arriving), stop=len(self.turns) >= self._steps)
        self._arriving = []
        self._mark = time.perf_counter()
        return arrived

    def launch(self, batch: Batch) -> _Timed:
        self._lap("schedule")
        self._steady = not batch.prefill and len(batch.decode_rows) == self._batch
        pending = self._executor.launch(batch)
        self._lap("launch")
        return _Timed(self, pending)

    def idle(self) -> bool:
        return self._executor.idle()

    def waited(self) -> None:
        self._lap("wait")

    def send(self, scheduler: Scheduler) -> None:
        self._lap("complete")
        output = scheduler.take_output()
        if output is not None:
            encode(output)
        self._lap("output")
        if self._steady:
            self._skip -= 1
            if self._skip < 0:
                self.turns.append(dict(self._seconds))

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] = now - self._mark
        self._mark = now


@dataclass
class _Timed:
    stopwatch: Stopwatch
    pending: PendingStep

    def tokens(self) -> list[int]:
        tokens = self.pending.tokens()
        self.stopwatch.waited()
        return tokens

    def scores(self) -> StepScores | None:
        return self.pending.scores()


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--batch", type=positive, default=256, help="requests that decode")
    parser.add_argument("--steps", type=positive, default=200, help="that are measured, after as many again / 4")
    parser.add_argument("--context", type=positive, default=200, help="tokens of each prompt")
    parser.add_argument("--options", default="{}", help="JSON: fields of EngineConfig and SchedulerConfig")
    report.add_out(parser)


def main(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> None:
    options = {"max_running_requests": args.batch} | json.loads(args.options)
    engine_config, scheduler_config = configurations(args.model, options)
    config = ModelConfig.load(args.model)
    engine = Engine(engine_config, config)
    results = both(engine, scheduler_config, args.batch, args.context, args.steps)
    engine.close()
    print_summary(args.batch, results)
    report.save(args, f"host-{args.batch}", results)


def both(engine: Engine, config: SchedulerConfig, batch: int, context: int, steps: int) -> dict[str, Any]:
    """Medians without a device, and with the engine."""
    executors: dict[str, Executor] = {"without a device": NoDevice(), "with the engine": engine}
    return {
        name: summary(measure(executor, engine.limits, config, batch, context, steps))
        for name, executor in executors.items()
    }


def measure(
    executor: Executor, limits: EngineLimits, config: SchedulerConfig, batch: int, context: int, steps: int
) -> list[dict[str, float]]:
    """The steady turns of `batch` requests that decode together."""
    warm_up = steps // 4
    prompts = -(-batch * context // config.prefill_budget)
    params = SamplingParams(max_tokens=steps + warm_up + prompts + 8, temperature=0.6, seed=1, ignore_eos=True)
    vocab = limits.vocab_size
    tokens = [index % vocab for index in range(context)]
    requests = [NewRequest(uid=uid, token_ids=[uid % vocab, *tokens[1:]], params=params) for uid in range(batch)]
    stopwatch = Stopwatch(executor, requests, warm_up, steps)
    overlap_loop(Scheduler(config, limits, []), stopwatch, stopwatch)
    return stopwatch.turns


def summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    """Medians in µs."""

    def median(values: list[float]) -> float:
        return round(statistics.median(values) * 1e6, 1)

    parts = {part: median([turn[part] for turn in turns]) for part in (*PARTS, "wait")}
    return parts | {"host": median([sum(turn[part] for part in PARTS) for turn in turns]), "steps": len(turns)}


def print_summary(batch: int, results: dict[str, dict[str, Any]]) -> None:
    columns = (*PARTS, "host", "wait")
    print(f"\nHost time of a steady decode step of {batch} requests, medians in µs")
    print(f"  {'':<18}" + "".join(f"{column:>10}" for column in columns))
    for name, row in results.items():
        print(f"  {name:<18}" + "".join(f"{row[column]:>10.1f}" for column in columns))
