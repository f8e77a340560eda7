"""What a rank does while nobody asks for anything."""

from __future__ import annotations

import logging

import pytest

from minisgl.grammar.compiler import Compiler
from minisgl.grammar.pool import MatcherPool
from minisgl.scheduler.process import WithGrammars
from minisgl.utils.errors import UserError
from support.fake_engine import FakeEngine
from support.fake_workers import wait_until
from support.grammars import COMPILER, GRAMMARS


class Counting:
    """Loads a compiler, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error

    def __call__(self) -> Compiler:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return COMPILER


class Busy(FakeEngine):
    """With two chores of its own."""

    left = 2

    def idle(self) -> bool:
        self.left -= 1
        return self.left > 0


def test_grammars_are_loaded_when_all_else_is_done_and_once() -> None:
    load = Counting()
    pool = MatcherPool(load)
    executor = WithGrammars(Busy(num_pages=1, page_size=1, num_rows=1), pool)
    assert executor.idle()
    assert load.calls == 0
    assert not executor.idle()
    wait_until(lambda: load.calls == 1)
    (matcher,) = pool.start(0, GRAMMARS[0], [])
    assert matcher.mask()
    assert load.calls == 1


def test_a_model_that_cannot_have_grammars_is_told_of_when_one_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    load = Counting(UserError("the model names no token that ends an answer"))
    pool = MatcherPool(load)
    pool.load_ahead()
    wait_until(lambda: load.calls == 1)
    assert not caplog.records
    with caplog.at_level(logging.ERROR):
        (matcher,) = pool.start(0, GRAMMARS[0], [])
        assert matcher.mask() is None
    assert load.calls == 2
