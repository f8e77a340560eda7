"""The paged KV cache: which page holds what, in pure Python, and the pool itself, on the device.

The pool needs torch, so it is imported from its own module.
"""

from minisgl.kvcache.manager import CacheManager, OutOfPages
from minisgl.kvcache.radix import Prefix

__all__ = ["CacheManager", "OutOfPages", "Prefix"]
