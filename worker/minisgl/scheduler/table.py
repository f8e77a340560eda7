"""The request table: which request has which row of the device's state."""

from __future__ import annotations

import heapq

from minisgl.core.request import Request


class TableManager:
    """Hands out rows ``0 .. num_rows - 1``, the smallest free one first, so that they stay dense."""

    def __init__(self, num_rows: int) -> None:
        self._free = list(range(num_rows))
        self.num_rows = num_rows

    @property
    def free_rows(self) -> int:
        return len(self._free)

    def assign(self, request: Request) -> None:
        """Give `request` a row; raises `IndexError` when none is free."""
        request.row = heapq.heappop(self._free)

    def release(self, request: Request) -> None:
        """Take the row of `request` back."""
        heapq.heappush(self._free, request.row)
        request.row = -1
