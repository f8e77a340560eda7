"""Tensors between the ranks of one worker."""

from minisgl.distributed.communicator import POLL_SECONDS, Communicator, RankWatch, connect
from minisgl.distributed.peers import Messages

__all__ = ["POLL_SECONDS", "Communicator", "Messages", "RankWatch", "connect"]
