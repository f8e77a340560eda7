"""An `LLM` of several ranks that loses one."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from minisgl.engine import engine
from minisgl.llm import LLM, RankLostError, SamplingParams
from minisgl.utils.errors import UserError
from support.dummy_model import make_dummy_model
from support.fake_workers import wait_until

LONG = SamplingParams(temperature=0.0, max_tokens=480, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return make_dummy_model(tmp_path_factory.mktemp("models") / "dummy", smollm2)


def other_ranks() -> list[int]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it is just ending
            if "minisgl.scheduler.process" in child.cmdline():
                found.append(child.pid)
    return sorted(found)


def load(model: Path, size: int) -> LLM:
    return LLM(str(model), dummy_weight=True, tp_size=size, num_pages=300, page_size=16)


def test_a_rank_that_dies_while_it_computes_is_named(model: Path) -> None:
    with load(model, 2) as llm:
        (victim,) = other_ranks()
        assert llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=3))[0].token_ids
        killed: list[float] = []

        def kill() -> None:
            os.kill(victim, signal.SIGKILL)
            killed.append(time.monotonic())

        threading.Timer(0.5, kill).start()
        with pytest.raises(RankLostError, match="scheduler-1 was killed by SIGKILL"):
            llm.generate([[5] * 10] * 4, LONG)
        assert time.monotonic() - killed[0] < 3
        with pytest.raises(RankLostError, match="scheduler-1"):
            llm.generate([[1, 2, 3]], LONG)
    assert not other_ranks()


def test_a_rank_that_dies_while_nobody_asks_is_named_and_the_others_end(model: Path) -> None:
    with load(model, 4) as llm:
        victim, *_ = other_ranks()
        os.kill(victim, signal.SIGTERM)
        wait_until(lambda: victim not in other_ranks())
        with pytest.raises(RankLostError, match="was killed by SIGTERM"):
            llm.generate([[1, 2, 3]], LONG)
        wait_until(lambda: not other_ranks())


def kill_first() -> None:
    os.kill(other_ranks()[0], signal.SIGKILL)


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_dies_before_the_ranks_have_met_is_named(model: Path, size: int) -> None:
    def kill_when_there() -> None:
        wait_until(lambda: len(other_ranks()) == size - 1)
        kill_first()

    threading.Thread(target=kill_when_there).start()
    begun = time.monotonic()
    with pytest.raises(RankLostError, match="was killed by SIGKILL"):
        load(model, size)
    assert time.monotonic() - begun < 10
    assert not other_ranks()


@pytest.mark.parametrize(
    ("owner", "name"), [(engine, "begin_loading"), (engine, "create_attention"), (engine.Engine, "_warm_up")]
)
def test_a_rank_that_dies_while_the_others_start_is_named(
    model: Path, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`name`: what rank 0 is about to do."""
    original = getattr(owner, name)

    def kill_and_go_on(*args: Any, **options: Any) -> Any:
        kill_first()
        return original(*args, **options)

    monkeypatch.setattr(owner, name, kill_and_go_on)
    with pytest.raises(RankLostError, match="was killed by SIGKILL"):
        load(model, 4)
    assert not other_ranks()


def test_an_option_that_no_rank_can_use_is_said_as_it_is(model: Path) -> None:
    with pytest.raises(UserError, match="--max-seq-len 10000000"):
        LLM(str(model), dummy_weight=True, tp_size=2, max_seq_len=10_000_000)
    assert not other_ranks()
