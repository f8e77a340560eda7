"""What rank 0's threads tell its loop reaches every rank in the same round."""

from __future__ import annotations

import threading

from minisgl.core.config import Addresses
from minisgl.message import GrammarBuilt
from minisgl.scheduler.io import RankEndpoint, RankZeroEndpoint
from minisgl.utils.sockets import private_directory


def test_a_grammar_that_was_read_wakes_the_loop_and_all_ranks_hear_of_it() -> None:
    with private_directory() as directory:
        addresses = Addresses(directory=directory)
        first, second = RankZeroEndpoint(addresses, 2, "scheduler-0"), RankEndpoint(addresses, 1, "scheduler-1")
        second.grammar_built(6)  # its own thread was faster, which makes no difference
        for uid in (4, 5):
            thread = threading.Thread(target=first.grammar_built, args=(uid,))
            thread.start()
            heard = [*first.receive(block=True).messages]
            assert heard == [GrammarBuilt(uid=uid)]
            assert second.receive(block=True).messages == heard
            thread.join()
