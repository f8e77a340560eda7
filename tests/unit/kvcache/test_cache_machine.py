"""Random lives of many requests over one pool, against a model that is a plain dict of page-aligned prefixes.

The model keeps, for each cached prefix, its page, its locks and when the last of these went, one page at a time.
It knows nothing of nodes, splits or heaps, and must agree on every page that is matched, locked, freed or evicted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minisgl.kvcache import CacheManager, OutOfPages, Prefix
from minisgl.kvcache.radix import Node, RadixCache

if TYPE_CHECKING:
    from minisgl.core.config import CacheType

Tokens = tuple[int, ...]

pytestmark = pytest.mark.timeout(600)  # it runs for seconds; finding the shortest counterexample takes minutes


@dataclass
class Entry:
    """One page of the model's cache."""

    page: int
    locks: int = 0
    stamp: int = 0


@dataclass
class Holder:
    """A request: `computed` of its tokens have keys and values in `pages`."""

    tokens: list[int]
    prefix: Prefix
    pages: list[int]
    computed: int
    locked: list[Tokens] = field(default_factory=list)
    """The prefixes that it has locked in the model."""


def tree_of(manager: CacheManager) -> dict[Tokens, tuple[int, int]]:
    """Page and locks of every page-aligned prefix, as a walk of the real tree finds them."""
    cache = manager._cache
    if not isinstance(cache, RadixCache):
        return {}
    found: dict[Tokens, tuple[int, int]] = {}
    stack: list[tuple[Node, Tokens]] = [(cache._root, ())]
    while stack:
        node, before = stack.pop()
        tokens = before + tuple(memoryview(bytes(node.tokens)).cast("I"))
        size = manager.page_size
        for index, page in enumerate(node.pages):
            found[tokens[: len(before) + (index + 1) * size]] = (page, node.locks)
        stack += [(child, tokens) for child in node.children.values()]
    return found


class CacheMachine(RuleBasedStateMachine):
    cache: ClassVar[CacheType] = "radix"
    page_size: ClassVar[int] = 1

    @initialize(num_pages=st.integers(1, 40))
    def start(self, num_pages: int) -> None:
        self.manager = CacheManager(num_pages=num_pages, page_size=self.page_size, cache=self.cache)
        self.holders: list[Holder] = []
        self.cached: dict[Tokens, Entry] = {}
        self.written: dict[int, Tokens] = {}  # page -> all tokens up to the last one written to it
        self.clock = 0

    # The model

    def aligned(self, tokens: list[int]) -> list[Tokens]:
        """Every page-aligned prefix of `tokens`, shortest first."""
        size = self.page_size
        return [tuple(tokens[:end]) for end in range(size, len(tokens) + 1, size)]

    def cached_run(self, tokens: list[int]) -> list[Tokens]:
        run: list[Tokens] = []
        for prefix in self.aligned(tokens):
            if prefix not in self.cached:
                break
            run.append(prefix)
        return run

    def free_pages(self) -> int:
        own = sum(len(holder.pages) - holder.prefix.pages for holder in self.holders)
        return self.manager.num_pages - own - len(self.cached)

    def model_lock(self, holder: Holder, prefixes: list[Tokens]) -> None:
        for prefix in prefixes:
            self.cached[prefix].locks += 1
        for prefix in reversed(holder.locked):
            self.model_unlock(prefix)
        holder.locked = prefixes

    def model_unlock(self, prefix: Tokens) -> None:
        entry = self.cached[prefix]
        entry.locks -= 1
        assert entry.locks >= 0
        if entry.locks == 0:
            self.clock += 1
            entry.stamp = self.clock

    def model_evict(self, count: int) -> list[int]:
        pages = []
        for _ in range(count):
            parents = {prefix[: -self.page_size] for prefix in self.cached}
            leaves = [p for p, entry in self.cached.items() if entry.locks == 0 and p not in parents]
            oldest = min(leaves, key=lambda prefix: self.cached[prefix].stamp)
            pages.append(self.cached.pop(oldest).page)
        return pages

    def model_commit(self, holder: Holder) -> tuple[list[int], int]:
        """What `pages` must be after a commit, and the first index that changes."""
        pages, first_changed = list(holder.pages), len(holder.pages)
        if self.cache == "naive":
            return pages, first_changed
        prefixes = self.aligned(holder.tokens[: holder.computed])
        for index, prefix in enumerate(prefixes):
            page = self.cached.setdefault(prefix, Entry(pages[index])).page
            if page != pages[index]:
                first_changed = min(first_changed, index)
                pages[index] = page
        self.model_lock(holder, prefixes)
        return pages, first_changed

    # What is done to both

    def allocate(self, count: int) -> list[int] | None:
        """None when there are not enough, which must leave everything as it was."""
        manager, free = self.manager, self.free_pages()
        if count > manager.available:
            before = (tree_of(manager), manager._allocator.check(), manager.available, manager.evicted_pages)
            with pytest.raises(OutOfPages):
                manager.allocate(count)
            assert before == (
                tree_of(manager),
                manager._allocator.check(),
                manager.available,
                manager.evicted_pages,
            )
            return None
        evicted_before = manager.evicted_pages
        evicted = self.model_evict(max(0, count - free))
        pages = manager.allocate(count)
        assert manager.evicted_pages - evicted_before == len(evicted)
        assert len(set(pages)) == len(pages) == count
        assert set(evicted) <= set(pages), "a page was evicted and not needed"
        for page in pages:
            self.written.pop(page, None)
        return pages

    def write(self, holder: Holder, end: int) -> None:
        """Compute the tokens up to `end`."""
        for index in range(holder.computed // self.page_size, -(-end // self.page_size)):
            assert index >= holder.prefix.pages, "a shared page would be written"
            self.written[holder.pages[index]] = tuple(holder.tokens[: min(end, (index + 1) * self.page_size)])
        holder.computed = end

    @rule(data=st.data(), spare=st.integers(0, 2), share=st.floats(0, 1))
    def admit(self, data: st.DataObject, spare: int, share: float) -> None:
        tokens = data.draw(self.token_runs(8))
        run = self.cached_run(tokens)
        unlocked = sum(self.cached[prefix].locks == 0 for prefix in run)
        manager, available = self.manager, self.manager.available
        assert manager.lookup(tokens) == (len(run), unlocked)

        prefix, pages = manager.acquire(tokens)
        assert pages == [self.cached[key].page for key in run]
        assert prefix.pages == len(run)
        assert manager.available == available - unlocked
        holder = Holder(tokens, prefix, pages, len(run) * self.page_size)
        self.model_lock(holder, run)
        self.holders.append(holder)

        own = self.allocate(-(-len(tokens) // self.page_size) - len(run) + spare)
        if own is None:
            self.end(holder)
            return
        holder.pages += own
        self.write(holder, holder.computed + round(share * (len(tokens) - holder.computed)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.write(holder, data.draw(st.integers(holder.computed, len(holder.tokens))))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def generate(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        more = data.draw(self.token_runs(2))
        need = -(-(len(holder.tokens) + len(more)) // self.page_size) - len(holder.pages)
        own = self.allocate(max(0, need))
        if own is not None:
            holder.pages += own
            holder.tokens += more
            self.write(holder, len(holder.tokens))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        pages, first_changed = self.model_commit(holder)
        holder.prefix, changed = self.manager.commit(holder.prefix, holder.tokens[: holder.computed], holder.pages)
        assert (holder.pages, changed) == (pages, first_changed)
        assert holder.prefix.pages == (holder.computed // self.page_size if self.cache == "radix" else 0)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.holders)))

    def end(self, holder: Holder) -> None:
        self.model_commit(holder)
        self.model_lock(holder, [])
        self.manager.release(holder.prefix, holder.tokens[: holder.computed], holder.pages)
        self.holders.remove(holder)

    @rule(count=st.integers(0, 45))
    def squeeze(self, count: int) -> None:
        """A request that takes pages and computes nothing: evicts, and gives its pages back as they are."""
        prefix, pages = self.manager.acquire([])
        own = self.allocate(count)
        self.manager.release(prefix, [], pages + (own or []))

    # What must hold after each of them

    @invariant()
    def every_page_is_in_one_place(self) -> None:
        self.manager.check([page for holder in self.holders for page in holder.pages[holder.prefix.pages :]])

    @invariant()
    def tree_and_model_agree(self) -> None:
        assert tree_of(self.manager) == {key: (entry.page, entry.locks) for key, entry in self.cached.items()}
        unlocked = sum(entry.locks == 0 for entry in self.cached.values())
        assert self.manager.cached_pages == unlocked
        assert self.manager.available == self.free_pages() + unlocked
        assert self.manager.used_pages == self.manager.num_pages - self.manager.available

    @invariant()
    def requests_read_what_they_computed(self) -> None:
        for holder in self.holders:
            for index, prefix in enumerate(self.aligned(holder.tokens[: holder.computed])):
                assert self.written[holder.pages[index]] == prefix

    @invariant()
    def handles_end_where_they_say(self) -> None:
        for holder in self.holders:
            pages: list[int] = []
            node: Node | None = holder.prefix.node
            while node is not None:
                pages = node.pages + pages
                node = node.parent
            assert pages == holder.pages[: holder.prefix.pages]

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            for holder in list(self.holders):
                self.end(holder)
            self.every_page_is_in_one_place()
            assert self.manager.used_pages == 0
            assert len(self.manager.allocate(self.manager.num_pages)) == self.manager.num_pages

    def token_runs(self, most_pages: int) -> st.SearchStrategy[list[int]]:
        """Tokens in which prefixes often meet, and part anywhere in a page."""
        size = self.page_size
        page = st.sampled_from([[0] * size, [0] * (size - 1) + [1], [2] + [0] * (size - 1)])
        tail = st.integers(0, size - 1).map(lambda length: [0] * length)
        return st.tuples(st.lists(page, max_size=most_pages), tail).map(
            lambda parts: [*chain(*parts[0]), *parts[1]]
        )


class Radix4(CacheMachine):
    page_size = 4


class Radix16(CacheMachine):
    page_size = 16


class Naive1(CacheMachine):
    cache = "naive"


class Naive16(CacheMachine):
    cache = "naive"
    page_size = 16


STEPS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
FEWER_STEPS = settings(STEPS, max_examples=15)

TestRadixPage1 = CacheMachine.TestCase
TestRadixPage1.settings = STEPS
TestRadixPage4 = Radix4.TestCase
TestRadixPage4.settings = STEPS
TestRadixPage16 = Radix16.TestCase
TestRadixPage16.settings = STEPS
TestNaivePage1 = Naive1.TestCase
TestNaivePage1.settings = FEWER_STEPS
TestNaivePage16 = Naive16.TestCase
TestNaivePage16.settings = FEWER_STEPS
