"""The worker's command line."""

from __future__ import annotations

from decimal import Decimal

from minisgl_operator import api

COMMAND = ("python", "-m", "minisgl")
PORT = 8000
DRAIN_GRACE_SECONDS = 5
"""How long a worker that was told to end still takes requests: until every proxy has heard of it."""


def served_name(name: str, spec: api.Spec) -> str:
    """The model's name in the API of the service `name`."""
    return spec.model.served_name or name


def worker_args(name: str, spec: api.Spec, model: str, *, host: str = "0.0.0.0", port: int = PORT) -> list[str]:
    """The options for the model in the directory `model`, each one ``--option=value``.

    A pod starts with them, so they may only change with the spec. What the spec leaves open is not said: the
    worker decides. The first options are `api.OWNED_FLAGS`; `extraArgs` come last, and win over the others.
    """
    engine, rollout = spec.engine, spec.rollout
    options = {
        "model": model,
        "served-model-name": served_name(name, spec),
        "host": host,
        "port": port,
        "device": engine.device,
        "tp": spec.parallelism.tensor,
        "drain-grace": DRAIN_GRACE_SECONDS,
        "drain-timeout": rollout.drain_timeout_seconds,
        "dtype": None if engine.dtype == "auto" else engine.dtype,
        "quantization": None if engine.quantization == "none" else engine.quantization,
        "kv-cache-dtype": None if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype,
        "cache": engine.cache_type,
        "attn": engine.attention_backend,
        "page-size": engine.page_size,
        "cuda-graph-max-batch": engine.cuda_graph_max_batch,
        "memory-ratio": None if engine.memory_ratio is None else _plain(engine.memory_ratio),
        "max-seq-len": engine.max_sequence_length,
        "max-running-requests": engine.max_running_requests,
        "max-prefill-length": engine.max_prefill_length,
    }
    given = [f"--{option}={value}" for option, value in options.items() if value is not None]
    return [*given, *engine.extra_args]


def _plain(number: float) -> str:
    """Without an exponent, which the worker does not read."""
    return format(Decimal(repr(number)), "f")
