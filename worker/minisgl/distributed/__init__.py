"""Tensors between the ranks of one worker."""

from minisgl.distributed.communicator import POLL_SECONDS, Communicator, RankWatch, connect
from minisgl.distributed.peers import Messages
from minisgl.distributed.sequence import Division

__all__ = ["POLL_SECONDS", "Communicator", "Division", "Messages", "RankWatch", "connect"]
