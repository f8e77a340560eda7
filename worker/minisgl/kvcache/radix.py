"""A prefix cache: a radix tree from token sequences to the pages that hold their keys and values.

The tree works in whole pages. An edge and the node it leads to are one object, `Node`: a run of pages and the
tokens in them. Two children of a node differ in their first page, so that page's tokens are the child's key::

    root -- [A B] --+-- [C D E]     prefixes  A B C D E  and  A B F,  a letter being one page of tokens
                    +-- [F]

Tokens are kept packed, 4 bytes each: runs of pages are compared by memcmp, and the garbage collector has nothing
to visit in them.

Locks: a node counts the handles (`Prefix`) that end in it or below it, so a node without locks has no locked
descendant, and all of it can be evicted, leaf by leaf. Pages of such nodes are counted in `unlocked_pages`.

Recency: a node is stamped when its last lock goes; while it is locked it is in use. Stamps come from a counter and
are never given twice, so the order of eviction is total, and the same on every rank.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKED = "I"
"""Array type code of a packed token: unsigned, 32 bits."""


class Node:
    """A run of pages, after the pages of its parents. The root alone has no parent and no pages."""

    __slots__ = ("children", "locks", "pages", "parent", "stamp", "tokens")

    def __init__(self, parent: Node | None, tokens: bytearray, pages: list[int], locks: int) -> None:
        self.parent = parent
        self.tokens = tokens
        """Packed tokens of `pages`."""
        self.pages = pages
        self.locks = locks
        self.stamp = 0
        """When the last lock went; meaningless while there are locks."""
        self.children: dict[bytes, Node] = {}
        """By the packed tokens of the child's first page."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A locked prefix: from the root to the end of `node`.

    It stays valid, and `node` keeps its end, whatever happens to the tree: a split makes a new node of the upper
    part, and a node is only lengthened on behalf of the one handle that locks it, which is replaced.
    """

    node: Node
    pages: int
    """Number of pages from the root to the end of `node`."""


class RadixCache:
    """The tree. It owns the pages in its nodes until `evict` gives them back."""

    def __init__(self, page_size: int) -> None:
        self.unlocked_pages = 0
        """Pages that `evict` could give back."""
        self._page_size = page_size
        self._width = page_size * array(PACKED).itemsize  # bytes of one page of packed tokens
        self._root = Node(None, bytearray(), [], 0)
        self._clock = 0
        self._heap: list[tuple[int, Node]] = []
        """(stamp, leaf) of every unlocked leaf, and stale entries: those whose node is locked, or stamped anew."""
        self._heap_limit = 64

    def acquire(self, tokens: Sequence[int]) -> tuple[Prefix, list[int]]:
        """Lock the longest prefix of `tokens` that the tree has, in whole pages; also its pages, in a new list."""
        node = self._root
        pages: list[int] = []
        for child, count in self._match(node, tokens, 0):
            node = child if count == len(child.pages) else self._split(child, count)
            pages += node.pages
        self._lock(node, self._root)
        return Prefix(node, len(pages)), pages

    def lookup(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The number of pages that `acquire` would lock, and how many of these are unlocked now."""
        pages = unlocked = 0
        for child, count in self._match(self._root, tokens, 0):
            pages += count
            if child.locks == 0:
                unlocked += count
        return pages, unlocked

    def insert(self, prefix: Prefix, tokens: Sequence[int], pages: list[int]) -> tuple[Prefix, int, list[int]]:
        """Add the whole pages of `tokens`, which begin with what `prefix` covers, and move its lock to their end.

        Where the tree has a page already, ``pages[i]`` is replaced by the tree's; the others become the tree's.
        Returns the new handle, the first index of `pages` that changed (its length when none did), and the pages
        that were replaced. Raises `ValueError` when `pages` are too few for `tokens`.
        """
        whole = len(tokens) // self._page_size
        if len(pages) < whole:
            raise ValueError(f"{len(tokens)} tokens in {len(pages)} pages of {self._page_size}")
        if whole <= prefix.pages:
            return prefix, len(pages), []
        node, end = prefix.node, prefix.pages
        duplicates: list[int] = []
        for child, count in self._match(node, tokens, end):
            node = child if count == len(child.pages) else self._split(child, count)
            duplicates += pages[end : end + count]
            pages[end : end + count] = node.pages
            end += count
        self._lock(node, prefix.node)
        first_changed = prefix.pages if duplicates else len(pages)

        if end < whole:
            rest, added = self._pack(tokens, end, whole), pages[end:whole]
            if node.locks == 1 and not node.children and node is not self._root:
                node.tokens += rest
                node.pages += added
            else:
                child = Node(node, bytearray(rest), added, 1)
                node.children[self._key(child)] = child
                node = child
        return Prefix(node, whole), first_changed, duplicates

    def unlock(self, prefix: Prefix) -> None:
        """Give back a handle, which must not be used again."""
        node = prefix.node
        while node.parent is not None:
            assert node.locks > 0, "a prefix was unlocked twice"
            node.locks -= 1
            if node.locks == 0:
                self._clock += 1
                node.stamp = self._clock
                self.unlocked_pages += len(node.pages)
                if not node.children:
                    self._push(node)
            node = node.parent

    def evict(self, count: int) -> list[int]:
        """Drop `count` pages, at most `unlocked_pages`, from the ends of the least recently used leaves."""
        assert count <= self.unlocked_pages, f"{count} pages to evict, {self.unlocked_pages} unlocked"
        self.unlocked_pages -= count
        evicted: list[int] = []
        while count > 0:
            stamp, leaf = self._heap[0]
            if leaf.locks > 0 or leaf.stamp != stamp:
                heappop(self._heap)
                continue
            kept = len(leaf.pages) - count
            if kept > 0:
                evicted += leaf.pages[kept:]
                del leaf.pages[kept:]
                del leaf.tokens[kept * self._width :]
                break
            heappop(self._heap)
            evicted += leaf.pages
            count = -kept
            parent = leaf.parent
            assert parent is not None
            del parent.children[self._key(leaf)]
            if not parent.children and parent.locks == 0 and parent is not self._root:
                self._push(parent)
        return evicted

    def check(self) -> list[int]:
        """The tree's pages; raises `AssertionError` when an invariant does not hold. Walks the tree."""
        pages: list[int] = []
        unlocked = 0
        leaves: list[Node] = []
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            below = 0
            for key, child in node.children.items():
                assert child.parent is node, "a child does not know its parent"
                assert key == self._key(child), "a child is filed under a key that is not its first page"
                assert child.pages, "a node has no pages"
                assert len(child.tokens) == len(child.pages) * self._width, "a node's tokens do not fill its pages"
                assert child.locks >= 0, "a lock count is negative"
                below += child.locks
                nodes.append(child)
            if node is self._root:
                continue
            assert node.locks >= below, "a node has fewer locks than its children"
            pages += node.pages
            if node.locks == 0:
                unlocked += len(node.pages)
                if not node.children:
                    leaves.append(node)
        assert len(set(pages)) == len(pages), "a page is in the tree twice"
        assert unlocked == self.unlocked_pages, f"{unlocked} pages are unlocked, not {self.unlocked_pages}"
        live = sorted(stamp for stamp, node in self._heap if node.locks == 0 and node.stamp == stamp)
        assert live == sorted(node.stamp for node in leaves), "the heap does not hold each unlocked leaf once"
        return pages

    def _pack(self, tokens: Sequence[int], first: int, end: int) -> bytes:
        """Pages ``first .. end - 1`` of `tokens`, packed; `OverflowError` for an id beyond 32 bits."""
        return array(PACKED, tokens[first * self._page_size : end * self._page_size]).tobytes()

    def _key(self, node: Node) -> bytes:
        return bytes(node.tokens[: self._width])

    def _match(self, node: Node, tokens: Sequence[int], first: int) -> Iterator[tuple[Node, int]]:
        """The nodes below `node` that `tokens` run through from page `first` on, and how many pages of each.

        Of every node but the last, that is all its pages. The last may be split while it is the one yielded.
        Takes time in proportion to what it finds, not to `tokens`.
        """
        whole = len(tokens) // self._page_size
        while first < whole:
            child = node.children.get(self._pack(tokens, first, first + 1))
            if child is None:
                return
            count = len(child.pages)
            packed = self._pack(tokens, first, first + count)
            if packed != child.tokens:
                yield child, _shared_pages(packed, child.tokens, self._width)
                return
            yield child, count
            first += count
            node = child

    def _split(self, node: Node, count: int) -> Node:
        """Cut `node` after its first `count` pages. They go to a new parent, which is returned."""
        parent = node.parent
        assert parent is not None
        cut = count * self._width
        upper = Node(parent, node.tokens[:cut], node.pages[:count], node.locks)
        parent.children[self._key(upper)] = upper
        node.parent = upper
        del node.tokens[:cut]
        del node.pages[:count]
        upper.children[self._key(node)] = node
        return upper

    def _lock(self, node: Node, above: Node) -> None:
        """Add a lock to each node from `node` up to, and without, `above`."""
        while node is not above:
            if node.locks == 0:
                self.unlocked_pages -= len(node.pages)
            node.locks += 1
            assert node.parent is not None
            node = node.parent

    def _push(self, leaf: Node) -> None:
        """Make `leaf` a candidate for eviction. Dropping stale entries at twice the live ones bounds the heap."""
        if len(self._heap) >= self._heap_limit:
            self._heap = [(stamp, node) for stamp, node in self._heap if node.locks == 0 and node.stamp == stamp]
            heapify(self._heap)
            self._heap_limit = 2 * len(self._heap) + 64
        heappush(self._heap, (leaf.stamp, leaf))


def _shared_pages(left: bytes, right: bytearray, width: int) -> int:
    """Whole pages of `width` bytes at the beginning of both, of which the first is known to be shared."""
    low, high = 1, min(len(left), len(right)) // width
    while low < high:
        middle = (low + high + 1) // 2
        if left[low * width : middle * width] == right[low * width : middle * width]:
            low = middle
        else:
            high = middle - 1
    return low
