"""What each component of a worker is told at its start. Built once by the launcher, then never changed."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]
CacheType = Literal["radix", "naive"]
Quantization = Literal["none", "fp8"]
KVCacheDType = Literal["auto", "fp8"]


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """ZMQ endpoints of one worker: sockets in `directory`, private to the launch (mode 0700).

    Each endpoint is bound by the one process that reads it, but `rank`, which rank 0 binds and rank N reads.
    """

    directory: str

    @property
    def api(self) -> str:
        """To the API server: `FromWorkers`."""
        return f"ipc://{self.directory}/api"

    def tokenizer(self, index: int) -> str:
        """To tokenizer worker `index`: `ToTokenizer`."""
        return f"ipc://{self.directory}/tokenizer-{index}"

    @property
    def scheduler(self) -> str:
        """To scheduler rank 0: `ToScheduler`."""
        return f"ipc://{self.directory}/scheduler"

    def rank(self, rank: int) -> str:
        """From rank 0 to rank `rank`: one `Round` a step."""
        return f"ipc://{self.directory}/rank-{rank}"

    @property
    def detokenizer(self) -> str:
        """To the detokenizer: `StepTokens`."""
        return f"ipc://{self.directory}/detokenizer"


def default_page_size(device: Device) -> int:
    """Tokens of a page, unasked: the attention kernels of a GPU read long pages faster."""
    return 64 if device == "cuda" else 16


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's executor."""

    model_path: str
    """A local Hugging Face directory."""
    device: Device = "cpu"
    dtype: DType = "float32"
    quantization: Quantization = "none"
    """fp8: the linear layers' weights are rounded to 8 bits as they are read, and their inputs in every step."""
    kv_cache_dtype: KVCacheDType = "auto"
    """fp8: keys and values are kept in 8 bits, without a scale. auto: in `dtype`."""
    attention: tuple[str, str] = ("auto", "auto")
    """Backend for prefill, backend for decode; auto: the first of `minisgl.attention.registry` that works."""
    page_size: int = 16
    num_pages: int | None = None
    """Pages of the KV pool. None: what `memory_ratio` of the free memory holds."""
    memory_ratio: float = 0.9
    """Share of the memory that is free before the start which model and KV pool may take together. On a CPU the
    pool takes no more than 4 GiB unasked, all ranks together: `num_pages` gives it more."""
    max_running_requests: int = 256
    max_seq_len: int | None = None
    """Tokens of one request, prompt and output. None: the model's limit."""
    max_step_tokens: int = 2048
    """Of a step with chunks of prompts: for as many, GPUs set memory aside to divide its rows among them."""
    cuda_graph_max_batch: int = 256
    """Most rows of a decode step that runs as a CUDA graph. 0: no step does, nor one with chunks."""
    dummy_weight: bool = False
    """Random weights (normal, std 0.02) instead of the checkpoint's: speed is the same, text is noise."""
    tp_rank: int = 0
    tp_size: int = 1
    pynccl: bool = True
    """Call NCCL directly, not through torch.distributed."""
    rendezvous: str = ""
    """A file path that the ranks of one worker meet at; unused when `tp_size` is 1."""
    num_threads: int = 0
    """Threads of CPU operators. 0: torch's choice divided by `tp_size`."""


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine found that it can hold, once the model is loaded."""

    num_pages: int
    page_size: int
    max_seq_len: int
    """Most tokens of one request, prompt and output: the least of the model's, the option's and the pool's."""
    max_running_requests: int
    vocab_size: int


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's scheduler."""

    cache: CacheType = "radix"
    prefill_budget: int = 2048
    """Tokens of one step: decodes first, prefill chunks fill the rest."""
    overlap: bool = True
    """Launch the next step before the last one's tokens are read."""
    record_steps: bool = False
    """The process of rank 0 keeps the last steps, for who asks what it did."""
    check_ranks: bool = False
    """Every rank compares each step with rank 0's before it launches it: for debugging."""


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One tokenizer worker."""

    model_path: str
    addresses: Addresses
    index: int = 0
    """It reads ``addresses.tokenizer(index)``."""


class DetokenizerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The detokenizer."""

    model_path: str
    addresses: Addresses


class SchedulerProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The process of one rank: its scheduler, its engine, and where they read and write."""

    engine: EngineConfig
    scheduler: SchedulerConfig
    addresses: Addresses
