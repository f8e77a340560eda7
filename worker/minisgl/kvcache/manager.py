"""Who has which page of the KV pool: the free list, the prefix cache, or one running request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from minisgl.kvcache.allocator import OutOfPages, PageAllocator
from minisgl.kvcache.naive import NaiveCache
from minisgl.kvcache.radix import Prefix, RadixCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minisgl.core.config import CacheType

__all__ = ["CacheManager", "OutOfPages", "Prefix"]


class PrefixCache(Protocol):
    """What `RadixCache` and `NaiveCache` have in common; `RadixCache` says what each does."""

    unlocked_pages: int

    def acquire(self, tokens: Sequence[int]) -> tuple[Prefix, list[int]]: ...

    def lookup(self, tokens: Sequence[int]) -> tuple[int, int]: ...

    def insert(self, prefix: Prefix, tokens: Sequence[int], pages: list[int]) -> tuple[Prefix, int, list[int]]: ...

    def unlock(self, prefix: Prefix) -> None: ...

    def evict(self, count: int) -> list[int]: ...

    def check(self) -> list[int]: ...


class CacheManager:
    """The pages of one KV pool, and the prefixes that they hold.

    A request's first ``prefix.pages`` pages are the cache's, locked for it; those after them are its own.
    Every decision follows from the order of the calls alone, so that all ranks hand out the same pages.
    """

    def __init__(self, *, num_pages: int, page_size: int, cache: CacheType) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        """Tokens of one page."""
        self.evicted_pages = 0
        """Pages evicted since the start."""
        self._allocator = PageAllocator(num_pages)
        self._cache: PrefixCache = RadixCache(page_size) if cache == "radix" else NaiveCache()

    @property
    def available(self) -> int:
        """Pages that `allocate` could hand out now: free ones and those that can be evicted."""
        return self._allocator.free_pages + self._cache.unlocked_pages

    @property
    def used_pages(self) -> int:
        """Pages that running requests hold, as their own or by a lock."""
        return self.num_pages - self.available

    @property
    def cached_pages(self) -> int:
        """Pages of prefixes that no running request holds."""
        return self._cache.unlocked_pages

    def acquire(self, tokens: Sequence[int]) -> tuple[Prefix, list[int]]:
        """Lock the longest cached prefix of `tokens`, in whole pages: its handle, and its pages in a new list."""
        return self._cache.acquire(tokens)

    def lookup(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The number of pages that `acquire` would find, and how many of them it would take from `available`."""
        return self._cache.lookup(tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` pages, evicting the least recently used prefixes as far as needed.

        Raises `OutOfPages`, having changed nothing, when `count` exceeds `available`.
        """
        missing = count - self._allocator.free_pages
        if missing > 0:
            if missing > self._cache.unlocked_pages:
                raise OutOfPages(f"{count} pages wanted, {self.available} of {self.num_pages} available")
            self._allocator.free(self._cache.evict(missing))
            self.evicted_pages += missing
        return self._allocator.allocate(count)

    def commit(self, prefix: Prefix, tokens: Sequence[int], pages: list[int]) -> tuple[Prefix, int]:
        """Share the whole pages of `tokens`, whose keys and values the launched steps put in `pages`.

        `tokens` begin with those that `prefix` covers; `pages` may go on beyond `tokens`. Pages that the cache had
        already are freed and replaced in `pages`, in place. Returns the handle that replaces `prefix`, over all
        whole pages of `tokens`, and the first index of `pages` that changed: ``len(pages)`` when none did.
        """
        prefix, first_changed, duplicates = self._cache.insert(prefix, tokens, pages)
        self._allocator.free(duplicates)
        return prefix, first_changed

    def release(self, prefix: Prefix, tokens: Sequence[int], pages: list[int]) -> None:
        """`commit`, then give back the handle and every page that the cache does not own.

        `tokens` are those with keys and values in `pages`. The request keeps nothing; `pages` must not be used.
        """
        prefix, _ = self.commit(prefix, tokens, pages)
        self._cache.unlock(prefix)
        self._allocator.free(pages[prefix.pages :])

    def check(self, own: Iterable[int] | None = None) -> None:
        """Raise `AssertionError` when an invariant does not hold. Walks everything: for tests.

        Given all pages that running requests have as their own, beyond their prefixes, it also makes sure that
        every page of the pool is in exactly one place.
        """
        free, cached = self._allocator.check(), self._cache.check()
        places = free + cached
        assert len(set(places)) == len(places), "a page is both free and cached"
        assert all(0 <= page < self.num_pages for page in places), "a page is not in the pool"
        assert 0 <= self.cached_pages <= len(cached), "more pages unlocked than cached"
        assert 0 <= self.used_pages <= self.num_pages, f"{self.used_pages} of {self.num_pages} pages used"
        if own is not None:
            places += own
            assert sorted(places) == list(range(self.num_pages)), "a page is lost, or in two places"
