"""A request whose grammar is not known waits for it; the others do not wait for the request."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

from minisgl.core.sampling import SamplingParams
from minisgl.message import GrammarChecked, NewRequest, Rejected
from minisgl.tokenizer.grammars import GrammarDesk

PATIENCE = 10.0


class Checker:
    """Takes its time for a grammar that it does not know."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.verdicts = {"good": "", "bad": "no text fits it"}

    def known(self, grammar: str) -> str | None:
        return self.verdicts.get(grammar)

    def check(self, grammar: str) -> str:
        assert self.go_on.wait(PATIENCE)
        if grammar == "broken":
            raise BrokenPipeError
        return "it is slow" if grammar == "slow" else ""


def request(uid: int, grammar: str) -> NewRequest:
    return NewRequest(uid=uid, token_ids=[1], params=SamplingParams(grammar=grammar))


def desk() -> tuple[GrammarDesk, Checker, SimpleQueue[GrammarChecked]]:
    told: SimpleQueue[GrammarChecked] = SimpleQueue()
    checker: Any = Checker()
    return GrammarDesk(checker, lambda: told.put), checker, told


def test_known_grammars_do_not_wait() -> None:
    grammars, _, _ = desk()
    good = request(1, "good")
    assert grammars.take(good, "response_format") is good
    assert grammars.take(request(2, "bad"), "tools") == Rejected(
        uid=2, message="tools cannot be followed: no text fits it", param="tools", code="invalid_grammar"
    )


def test_others_wait_without_holding_anybody_up() -> None:
    grammars, checker, told = desk()
    asked = [request(uid, grammar) for uid, grammar in enumerate(["new", "slow", "broken", "new"])]
    assert [grammars.take(one, "response_format") for one in asked] == [None] * 4
    grammars.forget(3)
    good = request(9, "good")
    assert grammars.take(good, "tools") is good, "meanwhile"
    checker.go_on.set()
    answers = [grammars.checked(told.get(timeout=PATIENCE)) for _ in asked]
    assert answers[0] is asked[0]
    assert (
        isinstance(answers[1], Rejected) and answers[1].message == "response_format cannot be followed: it is slow"
    )
    assert isinstance(answers[2], Rejected) and "at the moment" in answers[2].message
    assert answers[3] is None, "it was aborted"
