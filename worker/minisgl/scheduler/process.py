"""The process of one rank: ``python -m minisgl.scheduler.process``, started by the launcher."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from minisgl.core.batch import Executor
from minisgl.core.config import SchedulerProcessConfig
from minisgl.grammar.pool import MatcherPool, load_compiler
from minisgl.models.config import ModelConfig
from minisgl.scheduler.agreement import ComparedScheduler
from minisgl.scheduler.io import RankEndpoint, RankZeroEndpoint
from minisgl.scheduler.loop import normal_loop, overlap_loop
from minisgl.scheduler.recorder import RecordedComparedScheduler, RecordedScheduler, Recorder
from minisgl.scheduler.scheduler import Scheduler
from minisgl.utils.child import run_child
from minisgl.utils.cuda_driver import load_driver

logger = logging.getLogger("minisgl.scheduler")

SCHEDULERS: dict[tuple[bool, bool], type[Scheduler]] = {
    (False, False): Scheduler,
    (False, True): RecordedScheduler,
    (True, False): ComparedScheduler,
    (True, True): RecordedComparedScheduler,
}
"""By whether it compares its steps with rank 0's, and whether it records them."""


def main(process: str, config: SchedulerProcessConfig) -> None:
    """Build the engine, then schedule until the launcher ends the process, or rank 0 says stop."""
    from minisgl.engine.engine import Engine  # noqa: PLC0415  imported by `load_engine`

    age = seconds_since_start()
    phases = {"launch": max(seconds_since_start(os.getppid()) - age, 0.0), "imports": age}
    model = ModelConfig.load(Path(config.engine.model_path))
    engine = Engine(config.engine, model)
    phases |= engine.phases
    limits = engine.limits
    logger.info(
        "ready: %d pages of %d tokens, %d tokens a request at most; seconds: %s",
        limits.num_pages,
        limits.page_size,
        limits.max_seq_len,
        ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items()),
    )
    rank = config.engine.tp_rank
    endpoint: RankZeroEndpoint | RankEndpoint
    recorder = Recorder() if rank == 0 and config.scheduler.record_steps else None
    if rank == 0:
        endpoint = RankZeroEndpoint(config.addresses, config.engine.tp_size, process, recorder)
        endpoint.announce(limits, phases)
    else:
        endpoint = RankEndpoint(config.addresses, rank, process)
    load = partial(load_compiler, config.engine.model_path, limits.vocab_size, model.eos_ids)
    matchers = MatcherPool(load, endpoint.grammar_built, endpoint.masks_built)
    rules = config.scheduler, limits, model.eos_ids, matchers
    options: dict[str, Any] = {}
    if config.scheduler.check_ranks:
        options |= {"rank": rank, "exchange": endpoint.exchange}
    if recorder is not None:
        options |= {"recorder": recorder}
    scheduler = SCHEDULERS[config.scheduler.check_ranks, recorder is not None](*rules, **options)
    gc.freeze()
    gc.enable()
    loop = overlap_loop if config.scheduler.overlap else normal_loop
    loop(scheduler, WithGrammars(engine, matchers), endpoint)
    engine.close()


class WithGrammars:
    """The engine, whose last chore is to load what grammars need."""

    def __init__(self, engine: Executor, matchers: MatcherPool) -> None:
        self.launch = engine.launch
        self._engine = engine
        self._matchers = matchers

    def idle(self) -> bool:
        if self._engine.idle():
            return True
        self._matchers.load_ahead()
        return False


def load_engine() -> None:
    """What takes seconds whatever the options are: torch is imported, while a thread wakes the GPU's driver."""
    gc.disable()  # what a start makes stays; to look for garbage among it takes a tenth of the time
    threading.Thread(target=load_driver, daemon=True).start()
    importlib.import_module("minisgl.engine.engine")


def seconds_since_start(process: int | str = "self") -> float:
    """Age of a process. Linux only; 0 elsewhere."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), "starttime"
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


if __name__ == "__main__":
    run_child(SchedulerProcessConfig, main, ahead=load_engine)
