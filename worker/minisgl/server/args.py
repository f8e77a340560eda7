"""The command line becomes configuration, checked before anything is started."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from minisgl.core.config import (
    CacheType,
    Device,
    DType,
    EngineConfig,
    KVCacheDType,
    Quantization,
    SchedulerConfig,
    default_page_size,
)
from minisgl.core.sampling import SamplingParams
from minisgl.server.config import ServerConfig, WorkerConfig
from minisgl.server.devices import count_cuda_devices, torch_has_cuda
from minisgl.server.dialect import dialect
from minisgl.server.parser import CHECK_RANKS, ENGINE, NO_OVERLAP, SERVER, build_parser
from minisgl.server.tls import Tls, check
from minisgl.utils.errors import UserError
from minisgl.utils.kernel_cache import KERNEL_CACHE
from minisgl.utils.log import LogFormat

TRACING_PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
"""Those of the extra `otel`."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A checked command line. What depends on the model is still open."""

    model: str
    """A directory, or an id on the Hugging Face Hub."""
    revision: str | None
    dtype: DType | None
    """None: float32 on a CPU, the checkpoint's on a GPU."""
    engine: EngineConfig
    """Complete but for `model_path` and `dtype`."""
    scheduler: SchedulerConfig
    server: ServerConfig
    num_tokenizers: int
    tool_parser: str
    reasoning_parser: str
    log_level: str
    log_format: LogFormat
    shell: bool
    kernel_cache: str | None

    def worker(
        self,
        path: Path,
        *,
        checkpoint_dtype: DType,
        max_position: int,
        sampling: SamplingParams,
        chat_template: str | None = None,
    ) -> WorkerConfig:
        """The worker for the model at `path`, which recommends `sampling` and chats by `chat_template`.

        Raises `UserError` when the model cannot do what is asked.
        """
        longest = self.engine.max_seq_len
        if longest is not None and longest > max_position:
            raise UserError(f"--max-seq-len {longest}: {self.model} reads at most {max_position} tokens")
        spoken = dialect(chat_template, tool_parser=self.tool_parser, reasoning_parser=self.reasoning_parser)
        automatic = checkpoint_dtype if self.engine.device == "cuda" else "float32"
        return WorkerConfig(
            engine=msgspec.structs.replace(self.engine, model_path=str(path), dtype=self.dtype or automatic),
            scheduler=self.scheduler,
            server=msgspec.structs.replace(self.server, sampling=sampling, dialect=spoken),
            num_tokenizers=self.num_tokenizers,
            log_level=self.log_level,
            log_format=self.log_format,
            shell=self.shell,
        )


def parse_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Raises `UserError` for a bad option or a pair that contradicts itself; exits for ``--help``."""
    given = build_parser().parse_args(arguments)
    device = _device(given.device, given.tp)
    given.page_size = given.page_size or default_page_size(device)
    _check_pairs(given)
    served_name = given.served_model_name or _default_name(given.model)
    return Options(
        model=given.model,
        revision=given.revision,
        dtype=None if given.dtype == "auto" else cast(DType, given.dtype),
        engine=EngineConfig(
            model_path="",
            device=device,
            quantization=cast(Quantization, given.quantization),
            kv_cache_dtype=cast(KVCacheDType, given.kv_cache_dtype),
            attention=given.attn,
            page_size=given.page_size,
            num_pages=given.num_pages,
            memory_ratio=ENGINE.memory_ratio if given.memory_ratio is None else given.memory_ratio,
            max_running_requests=given.max_running_requests,
            max_seq_len=given.max_seq_len,
            max_step_tokens=given.max_prefill_length,
            cuda_graph_max_batch=given.cuda_graph_max_batch,
            dummy_weight=given.dummy_weight,
            pynccl=not given.disable_pynccl,
            tp_size=given.tp,
        ),
        scheduler=SchedulerConfig(
            cache=cast(CacheType, given.cache),
            prefill_budget=given.max_prefill_length,
            record_steps=not given.no_page,
            overlap=not _flag(environ, NO_OVERLAP),
            check_ranks=_flag(environ, CHECK_RANKS),
        ),
        server=ServerConfig(
            served_model_name=served_name,
            model=_default_name(given.model),
            host=given.host,
            port=(0 if given.shell else SERVER.port) if given.port is None else given.port,
            api_key=_api_key(given.api_key, environ),
            tls=_tls(given),
            max_queued_requests=given.max_queued_requests,
            max_body_size=given.max_body_size,
            drain_grace=given.drain_grace,
            drain_timeout=given.drain_timeout,
            page=not given.no_page,
            otlp_traces_endpoint=given.otlp_traces_endpoint,
        ),
        num_tokenizers=given.num_tokenizer,
        tool_parser=given.tool_parser,
        reasoning_parser=given.reasoning_parser,
        log_level=given.log_level or ("warning" if given.shell else "info"),
        log_format=cast(LogFormat, given.log_format),
        shell=given.shell,
        kernel_cache=given.kernel_cache or environ.get(KERNEL_CACHE) or None,
    )


def _check_pairs(given: argparse.Namespace) -> None:
    if given.revision is not None and Path(given.model).expanduser().is_dir():
        raise UserError(f"--revision is for models on the Hub, but --model {given.model} is a directory")
    if given.otlp_traces_endpoint is not None and not _has_exporter():
        raise UserError(f"--otlp-traces-endpoint needs OpenTelemetry: pip install {' '.join(TRACING_PACKAGES)}")
    if given.shell and given.ssl_ca_certs is not None:
        raise UserError("--ssl-ca-certs asks every client for a certificate, and --shell has none")
    if given.num_pages is None:
        return
    if given.memory_ratio is not None:
        raise UserError("--num-pages and --memory-ratio both set the size of the KV pool; give one of them")
    tokens = given.num_pages * given.page_size
    if given.max_seq_len is not None and given.max_seq_len > tokens:
        raise UserError(
            f"--max-seq-len {given.max_seq_len} does not fit in --num-pages {given.num_pages} "
            f"of {given.page_size} tokens each, {tokens} in all"
        )


def _default_name(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _device(given: str, tp: int) -> Device:
    if given == "cpu" or (given == "auto" and not (torch_has_cuda() and count_cuda_devices())):
        return "cpu"
    devices = count_cuda_devices()
    if devices == 0:
        raise UserError("--device cuda: this machine has no usable CUDA device; allowed: auto, cpu")
    if tp > devices:
        raise UserError(f"--tp {tp}: this machine has {devices} CUDA devices")
    return "cuda"


def _tls(given: argparse.Namespace) -> Tls | None:
    if given.ssl_certfile is None or given.ssl_keyfile is None:
        for name, value in vars(given).items():
            if name.startswith("ssl_") and value is not None:
                raise UserError(f"--{name.replace('_', '-')} needs --ssl-certfile and --ssl-keyfile, both")
        return None
    tls = Tls(
        certfile=str(Path(given.ssl_certfile).absolute()),
        keyfile=str(Path(given.ssl_keyfile).absolute()),
        password=given.ssl_keyfile_password,
        ca_certs=None if given.ssl_ca_certs is None else str(Path(given.ssl_ca_certs).absolute()),
    )
    check(tls)
    return tls


def _has_exporter() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _api_key(option: str | None, environ: Mapping[str, str]) -> str | None:
    file = environ.get("MINISGL_API_KEY_FILE")
    given = {"--api-key": option, "MINISGL_API_KEY": environ.get("MINISGL_API_KEY"), "MINISGL_API_KEY_FILE": file}
    sources = [source for source, value in given.items() if value is not None]
    if len(sources) > 1:
        raise UserError(f"{' and '.join(sources)} all give an API key; give one of them")
    if not sources:
        return None
    try:
        key = given[sources[0]] if file is None else Path(file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"MINISGL_API_KEY_FILE {file}: {getattr(error, 'strerror', None) or error}") from None
    if not re.fullmatch(r"[!-~]+", key or ""):
        raise UserError(f"{sources[0]}: a key is one or more printable ASCII characters without spaces")
    return key


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise UserError(f"{name}={value}: must be 0 or 1")
    return value == "1"
