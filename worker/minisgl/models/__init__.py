"""Model families: their configuration, their weights, their forward pass.

`config` and `checkpoint` import no torch: a launcher checks a checkpoint with them before any process starts.
"""
