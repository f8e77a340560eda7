"""The nouns of the engine: sampling parameters, requests, batches, configurations. No torch, no I/O."""
