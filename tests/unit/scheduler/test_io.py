"""What rank 0's threads tell its loop reaches every rank in the same round."""

from __future__ import annotations

import threading

from minisgl.core.config import Addresses
from minisgl.message import GrammarBuilt, MasksBuilt
from minisgl.scheduler.io import RankEndpoint, RankZeroEndpoint
from minisgl.utils.sockets import private_directory


def test_what_the_threads_for_grammars_say_wakes_the_loop_and_all_ranks_hear_of_it() -> None:
    with private_directory() as directory:
        addresses = Addresses(directory=directory)
        first, second = RankZeroEndpoint(addresses, 2, "scheduler-0"), RankEndpoint(addresses, 1, "scheduler-1")
        second.grammar_built(6)  # its own thread was faster, which makes no difference
        second.masks_built(1)
        assert first.receive(block=False, patience=0.002).messages == second.receive(block=False).messages == []
        for say, number, message, block in (
            (first.grammar_built, 4, GrammarBuilt(uid=4), True),
            (first.grammar_built, 5, GrammarBuilt(uid=5), True),
            (first.masks_built, 1, MasksBuilt(number=1), True),
            (first.masks_built, 2, MasksBuilt(number=2), False),
        ):
            thread = threading.Thread(target=say, args=(number,))
            thread.start()
            heard = [*first.receive(block=block, patience=5.0).messages]
            assert heard == [message]
            assert second.receive(block=True).messages == heard
            thread.join()
