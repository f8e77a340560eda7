"""A prefix cache that keeps nothing: for measuring what sharing prefixes is worth, and for models without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minisgl.kvcache.radix import Node, Prefix

if TYPE_CHECKING:
    from collections.abc import Sequence


class NaiveCache:
    """`RadixCache`'s interface over a tree that stays empty."""

    def __init__(self) -> None:
        self.unlocked_pages = 0
        self._empty = Prefix(Node(None, bytearray(), [], 0), 0)

    def acquire(self, tokens: Sequence[int]) -> tuple[Prefix, list[int]]:  # noqa: ARG002
        return self._empty, []

    def lookup(self, tokens: Sequence[int]) -> tuple[int, int]:  # noqa: ARG002
        return 0, 0

    def insert(
        self,
        prefix: Prefix,
        tokens: Sequence[int],  # noqa: ARG002
        pages: list[int],
    ) -> tuple[Prefix, int, list[int]]:
        return prefix, len(pages), []

    def unlock(self, prefix: Prefix) -> None:
        pass

    def evict(self, count: int) -> list[int]:
        raise AssertionError(f"{count} pages to evict from a cache that holds none")

    def check(self) -> list[int]:
        return []
