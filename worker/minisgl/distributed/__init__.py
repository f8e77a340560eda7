"""Tensors between the ranks of one worker."""

from minisgl.distributed.communicator import Communicator, RankWatch, connect
from minisgl.distributed.peers import Messages

__all__ = ["Communicator", "Messages", "RankWatch", "connect"]
