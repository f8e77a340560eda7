"""The free pages of the KV pool."""

from __future__ import annotations


class OutOfPages(RuntimeError):
    """More pages were asked for than are free or can be evicted."""


class PageAllocator:
    """A stack of free page numbers: pages freed last are handed out first, the same on every rank."""

    __slots__ = ("_free",)

    def __init__(self, num_pages: int) -> None:
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` pages; raises `OutOfPages`, having changed nothing, when fewer are free."""
        if count > len(self._free):
            raise OutOfPages(f"{count} pages wanted, {len(self._free)} free")
        if count <= 0:
            return []
        pages = self._free[: -count - 1 : -1]
        del self._free[-count:]
        return pages

    def free(self, pages: list[int]) -> None:
        """Take back `pages`, the first of which is handed out first."""
        self._free.extend(reversed(pages))

    def check(self) -> list[int]:
        """The free pages; raises `AssertionError` when one is free twice."""
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        return list(self._free)
