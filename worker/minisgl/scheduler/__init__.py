"""Decides what each step computes. Pure bookkeeping, the same on every rank, but for `process` and `io`."""
