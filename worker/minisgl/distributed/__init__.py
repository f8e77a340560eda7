"""Tensors between the ranks of one worker."""

from minisgl.distributed.communicator import Communicator, connect

__all__ = ["Communicator", "connect"]
