"""The page bookkeeping, case by case. Pages of 4 tokens unless said; `page(n)` is unlike any other page."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from minisgl.kvcache import CacheManager, OutOfPages, Prefix
from minisgl.kvcache.radix import RadixCache

SIZE = 4


def page(number: int) -> list[int]:
    return [number * SIZE + offset for offset in range(SIZE)]


def tokens_of(*numbers: int) -> list[int]:
    return [token for number in numbers for token in page(number)]


def radix(num_pages: int) -> CacheManager:
    return CacheManager(num_pages=num_pages, page_size=SIZE, cache="radix")


def begin(manager: CacheManager, tokens: list[int]) -> tuple[Prefix, list[int]]:
    """Admit a request with pages for all its tokens."""
    prefix, pages = manager.acquire(tokens)
    return prefix, pages + manager.allocate(-(-len(tokens) // manager.page_size) - prefix.pages)


def store(manager: CacheManager, tokens: list[int]) -> list[int]:
    """Admit a request, compute all its tokens and finish it; returns the pages that it read at its end."""
    prefix, pages = begin(manager, tokens)
    manager.release(prefix, tokens, pages)
    return pages


def test_counts_follow_a_request_through_its_life() -> None:
    manager = radix(10)
    assert (manager.available, manager.used_pages, manager.cached_pages) == (10, 0, 0)
    tokens = [*tokens_of(1, 2), 99]
    prefix, pages = begin(manager, tokens)
    assert (prefix.pages, len(pages)) == (0, 3)
    assert (manager.available, manager.used_pages, manager.cached_pages) == (7, 3, 0)
    prefix, changed = manager.commit(prefix, tokens, pages)
    assert (prefix.pages, changed) == (2, 3)
    assert (manager.available, manager.used_pages, manager.cached_pages) == (7, 3, 0)
    manager.release(prefix, tokens, pages)
    assert (manager.available, manager.used_pages, manager.cached_pages) == (10, 0, 2)
    manager.check([])


def test_a_match_is_in_whole_pages_and_says_what_it_would_lock() -> None:
    manager = radix(10)
    pages = store(manager, tokens_of(1, 2, 3))
    almost = tokens_of(1, 2, 3)[:-1]
    assert manager.lookup(almost) == (2, 2)
    assert manager.lookup([*tokens_of(1), 0]) == (1, 1)
    assert manager.lookup(tokens_of(4)) == manager.lookup([]) == (0, 0)
    prefix, found = manager.acquire(almost)
    assert (prefix.pages, found) == (2, pages[:2])
    assert manager.available == 8
    assert manager.lookup(tokens_of(1, 2, 3)) == (3, 1)
    manager.check([])


def test_acquired_pages_are_a_list_of_their_own() -> None:
    manager = radix(4)
    store(manager, tokens_of(1, 2))
    _, pages = manager.acquire(tokens_of(1, 2))
    pages.clear()
    assert manager.lookup(tokens_of(1, 2)) == (2, 0)
    manager.check([])


def test_tokens_may_be_any_sequence_and_as_large_as_32_bits() -> None:
    manager = radix(4)
    store(manager, [2**32 - 1] * SIZE)
    assert manager.lookup((2**32 - 1,) * SIZE) == (1, 1)
    with pytest.raises(OverflowError):
        manager.lookup([2**32] * SIZE)


def test_page_size_one_matches_to_the_token() -> None:
    manager = CacheManager(num_pages=2000, page_size=1, cache="radix")
    pages = store(manager, list(range(1000)))
    for length in (1, 2, 499, 998, 999):
        tokens = [*range(length), 5000, 5001]
        assert manager.lookup(tokens) == (length, length)
        prefix, found = manager.acquire(tokens)
        assert found == pages[:length]
        manager.release(prefix, tokens[:length], found)
        manager.check([])


def test_duplicates_are_freed_and_replaced_in_place() -> None:
    manager = radix(10)
    first = begin(manager, tokens_of(1, 2, 3))
    second = begin(manager, [*tokens_of(1, 2, 4), 7])
    own = list(second[1])
    manager.commit(first[0], tokens_of(1, 2, 3), first[1])
    assert manager.available == 3
    prefix, changed = manager.commit(second[0], tokens_of(1, 2, 4), second[1])
    assert (prefix.pages, changed) == (3, 0)
    assert second[1] == first[1][:2] + own[2:]
    assert manager.available == 5
    assert sorted(manager.allocate(2)) == sorted(own[:2])
    manager.check([*own[:2], own[3]])


def test_a_requests_own_committed_pages_are_not_duplicates() -> None:
    manager = radix(10)
    tokens = tokens_of(1, 2, 3, 4)
    prefix, pages = begin(manager, tokens)
    own = list(pages)
    for computed in (3, 4, 9, 9, 16):  # chunks that end anywhere in a page
        prefix, changed = manager.commit(prefix, tokens[:computed], pages)
        assert (prefix.pages, changed, pages) == (computed // SIZE, 4, own)
        manager.check(own[prefix.pages :])
    assert manager.available == 6


def test_a_commit_may_change_pages_after_some_that_stay() -> None:
    manager = radix(12)
    slow_prefix, slow = begin(manager, tokens_of(1, 2, 3))
    slow_prefix, _ = manager.commit(slow_prefix, tokens_of(1), slow)
    quick = store(manager, tokens_of(1, 2, 3))
    assert quick[0] == slow[0] and quick[1:] != slow[1:]
    slow_prefix, changed = manager.commit(slow_prefix, tokens_of(1, 2, 3), slow)
    assert (slow_prefix.pages, changed, slow) == (3, 1, quick)
    manager.check([])


def test_committing_less_than_the_prefix_covers_changes_nothing() -> None:
    manager = radix(4)
    pages = store(manager, tokens_of(1, 2))
    prefix, found = manager.acquire(tokens_of(1, 2))
    assert manager.commit(prefix, tokens_of(1), found) == (prefix, 2)
    assert found == pages
    manager.release(prefix, [], found)
    assert manager.cached_pages == 2
    manager.check([])


def test_too_few_pages_for_the_tokens_is_an_error() -> None:
    manager = radix(4)
    prefix, pages = begin(manager, tokens_of(1))
    with pytest.raises(ValueError, match="8 tokens in 1 pages of 4"):
        manager.commit(prefix, tokens_of(1, 2), pages)


def test_release_frees_what_was_not_computed() -> None:
    manager = radix(10)
    prefix, pages = begin(manager, tokens_of(1, 2, 3))
    manager.release(prefix, tokens_of(1, 2, 3)[:6], pages)
    assert (manager.available, manager.cached_pages) == (10, 1)
    assert manager.lookup(tokens_of(1, 2, 3)) == (1, 1)
    manager.check([])


def test_a_split_keeps_handles_and_locks() -> None:
    manager = radix(10)
    prefix, pages = begin(manager, tokens_of(1, 2, 3))
    prefix, _ = manager.commit(prefix, tokens_of(1, 2, 3), pages)
    other = begin(manager, tokens_of(1, 5))  # splits the first request's node after page 1
    other_prefix, _ = manager.commit(other[0], tokens_of(1, 5), other[1])
    manager.check([])
    assert other[1][0] == pages[0]
    assert (prefix.pages, manager.used_pages) == (3, 4)

    manager.release(other_prefix, tokens_of(1, 5), other[1])
    assert manager.cached_pages == 1  # page 5; page 1 is the first request's too
    pages += manager.allocate(1)
    prefix, changed = manager.commit(prefix, tokens_of(1, 2, 3, 4), pages)
    assert (prefix.pages, changed) == (4, 4)
    manager.check([])
    manager.release(prefix, tokens_of(1, 2, 3, 4), pages)
    assert manager.used_pages == 0
    assert manager.acquire(tokens_of(1, 2, 3, 4))[1] == pages


def test_a_handle_outlives_the_other_that_locks_the_same_pages() -> None:
    manager = radix(4)
    store(manager, tokens_of(1, 2))
    first, first_pages = manager.acquire(tokens_of(1, 2))
    second, second_pages = manager.acquire(tokens_of(1, 2))
    manager.release(first, tokens_of(1, 2), first_pages)
    assert (manager.available, manager.cached_pages) == (2, 0)
    with pytest.raises(OutOfPages):
        manager.allocate(3)
    manager.release(second, tokens_of(1, 2), second_pages)
    assert manager.available == 4


def test_lengthening_ones_prefix_leaves_another_handle_on_it_as_it_was() -> None:
    manager = radix(6)
    store(manager, tokens_of(1, 2))
    first, first_pages = manager.acquire(tokens_of(1, 2))
    second, second_pages = manager.acquire(tokens_of(1, 2))
    first_pages += manager.allocate(1)
    first, _ = manager.commit(first, tokens_of(1, 2, 3), first_pages)
    manager.release(first, tokens_of(1, 2, 3), first_pages)
    assert (second.pages, manager.cached_pages, manager.used_pages) == (2, 1, 2)
    assert sorted(manager.allocate(4)) == [2, 3, 4, 5]
    assert manager.evicted_pages == 1
    assert manager.lookup(tokens_of(1, 2, 3)) == (2, 0)
    manager.release(second, tokens_of(1, 2), second_pages)


def test_the_least_recently_used_goes_first() -> None:
    manager = radix(4)
    for number in (1, 2, 3, 4):
        store(manager, tokens_of(number))
    store(manager, tokens_of(1))  # used again
    assert manager.lookup(tokens_of(2)) == (1, 1)  # looking is not using
    for oldest in (2, 3, 4, 1):
        manager.allocate(1)
        manager.check()
        left = [number for number in (2, 3, 4, 1) if manager.lookup(tokens_of(number))[0]]
        assert oldest not in left and manager.cached_pages == len(left)
    assert manager.evicted_pages == 4


def test_the_order_survives_thousands_of_uses() -> None:
    rng = random.Random(3)
    manager = radix(100)
    order: dict[int, None] = {}  # least recently used first
    for _ in range(3000):
        number = int(rng.triangular(0, 150))
        assert manager.lookup(tokens_of(number))[0] == (number in order)
        if number not in order and len(order) == 100:
            del order[next(iter(order))]
        store(manager, tokens_of(number))
        order.pop(number, None)
        order[number] = None
    assert manager.evicted_pages > 500
    for number in order:
        assert manager.lookup(tokens_of(number)) == (1, 1)
        manager.allocate(1)
        assert manager.lookup(tokens_of(number)) == (0, 0)


def test_what_is_in_use_counts_as_used_until_it_is_released() -> None:
    manager = radix(3)
    store(manager, tokens_of(1))
    held, held_pages = manager.acquire(tokens_of(1))
    store(manager, tokens_of(2))
    store(manager, tokens_of(3))
    manager.release(held, tokens_of(1), held_pages)
    manager.allocate(2)
    assert [manager.lookup(tokens_of(number))[0] for number in (1, 2, 3)] == [1, 0, 0]


def test_eviction_takes_the_end_of_a_prefix_and_no_more_than_needed() -> None:
    manager = radix(6)
    pages = store(manager, tokens_of(1, 2, 3, 4, 5))
    assert sorted(manager.allocate(3)) == sorted([5, pages[4], pages[3]])
    assert (manager.evicted_pages, manager.lookup(tokens_of(1, 2, 3, 4, 5))) == (2, (3, 3))
    store_again, found = manager.acquire(tokens_of(1, 2, 3, 4, 5))
    assert found == pages[:3]
    manager.release(store_again, tokens_of(1, 2, 3), found)
    manager.check()


def test_eviction_climbs_to_parents() -> None:
    manager = radix(8)
    store(manager, tokens_of(1, 2, 3))
    store(manager, tokens_of(1, 2, 4))
    store(manager, tokens_of(5))
    prefix, pages = manager.acquire(tokens_of(5))
    # 4 pages under two leaves and their parent are unlocked; 3 are free
    assert (manager.cached_pages, manager.available) == (4, 7)
    manager.allocate(4)
    assert [manager.lookup(tokens_of(1, 2, last))[0] for last in (3, 4)] == [2, 3]
    manager.allocate(1)
    assert manager.lookup(tokens_of(1, 2, 4)) == (2, 2)
    manager.allocate(2)
    assert (manager.lookup(tokens_of(1))[0], manager.cached_pages, manager.evicted_pages) == (0, 0, 4)
    assert manager.lookup(tokens_of(5)) == (1, 0)
    manager.release(prefix, tokens_of(5), pages)
    assert manager.available == 1
    manager.check()


def test_a_parent_is_not_evicted_before_a_locked_child() -> None:
    manager = radix(4)
    store(manager, tokens_of(1, 2, 3))
    store(manager, tokens_of(1, 4))
    prefix, pages = manager.acquire(tokens_of(1, 4))
    assert manager.available == 2
    manager.allocate(2)
    manager.check()
    assert (manager.lookup(tokens_of(1, 2, 3)), manager.lookup(tokens_of(1, 4))) == ((1, 0), (2, 0))
    with pytest.raises(OutOfPages):
        manager.allocate(1)
    manager.release(prefix, tokens_of(1, 4), pages)


def test_out_of_pages_changes_nothing() -> None:
    manager = radix(5)
    store(manager, tokens_of(1, 2))
    prefix, pages = begin(manager, tokens_of(3, 4))
    with pytest.raises(OutOfPages, match="4 pages wanted, 3 of 5 available"):
        manager.allocate(4)
    assert (manager.available, manager.cached_pages, manager.evicted_pages) == (3, 2, 0)
    assert manager.lookup(tokens_of(1, 2)) == (2, 2)
    manager.check(pages)
    assert len(manager.allocate(3)) == 3
    manager.release(prefix, tokens_of(3, 4), pages)


def test_naive_shares_nothing() -> None:
    manager = CacheManager(num_pages=6, page_size=SIZE, cache="naive")
    pages = store(manager, tokens_of(1, 2))
    assert (manager.available, manager.cached_pages, manager.lookup(tokens_of(1, 2))) == (6, 0, (0, 0))
    prefix, found = manager.acquire(tokens_of(1, 2))
    assert (prefix.pages, found) == (0, [])
    own = manager.allocate(2)
    assert manager.commit(prefix, tokens_of(1, 2), own) == (prefix, 2)
    assert (own, manager.available) == (pages, 4)
    with pytest.raises(OutOfPages):
        manager.allocate(5)
    manager.release(prefix, tokens_of(1, 2), own)
    assert manager.available == 6
    manager.check([])


def test_the_heap_stays_bounded_while_nothing_is_evicted() -> None:
    manager = radix(8)
    for turn in range(5000):
        store(manager, tokens_of(turn % 8))
    assert isinstance(manager._cache, RadixCache)
    assert len(manager._cache._heap) <= 2 * 8 + 64
    assert manager.evicted_pages == 0


def test_check_finds_a_page_in_two_places() -> None:
    manager = radix(4)
    _, pages = begin(manager, tokens_of(1))
    manager.check(pages)
    with pytest.raises(AssertionError, match="lost, or in two places"):
        manager.check([])
    manager._allocator.free([pages[0], pages[0]])
    with pytest.raises(AssertionError, match="free twice"):
        manager.check()


def trace(seed: int) -> str:
    """Every page handed out or rewritten during 1,500 random operations."""
    rng = random.Random(seed)
    manager = radix(60)
    running: list[tuple[Prefix, list[int], list[int]]] = []
    log: list[object] = []
    for _ in range(1500):
        if running and rng.random() < 0.5:
            prefix, tokens, pages = running.pop(rng.randrange(len(running)))
            computed = tokens[: rng.randint(prefix.pages * SIZE, len(tokens))]
            if rng.random() < 0.5:
                manager.release(prefix, computed, pages)
            else:
                prefix, changed = manager.commit(prefix, computed, pages)
                running.append((prefix, tokens, pages))
                log.append(changed)
            log.append(list(pages))
        else:
            tokens = tokens_of(*(rng.randrange(3) for _ in range(rng.randint(1, 8))))
            if len(tokens) // SIZE <= manager.available:
                prefix, pages = begin(manager, tokens)
                running.append((prefix, tokens, pages))
                log.append(list(pages))
        log.append(manager.available)
    assert manager.evicted_pages > 100
    manager.check([own for prefix, _, pages in running for own in pages[prefix.pages :]])
    return repr(log)


def test_every_rank_hands_out_the_same_pages() -> None:
    """In one process, and in one that hashes bytes differently."""
    expected = trace(7)
    assert trace(7) == expected
    other_rank = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other_rank.stdout.strip() == expected


if __name__ == "__main__":
    print(trace(7))
