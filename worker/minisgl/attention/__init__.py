"""Attention over the paged KV cache: what a model asks for, and the backends that give it."""
