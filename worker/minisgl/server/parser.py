"""The options: their names, types, ranges, defaults and units."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

import minisgl
from minisgl.core.config import EngineConfig, SchedulerConfig
from minisgl.server.config import ServerConfig
from minisgl.utils.errors import UserError
from minisgl.utils.kernel_cache import KERNEL_CACHE

ATTENTION_BACKENDS = ("auto", "flashinfer", "flash_attn", "triton", "torch")
ATTENTION_SHORT = {"fi": "flashinfer", "fa": "flash_attn"}
NO_OVERLAP = "MINISGL_DISABLE_OVERLAP_SCHEDULING"
CHECK_RANKS = "MINISGL_CHECK_RANKS"
ENGINE, SCHEDULER = EngineConfig(model_path=""), SchedulerConfig()
SERVER = ServerConfig(served_model_name="")
"""These hold the defaults."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class _Group:
    """A titled group of options. Calling it adds one, whose help ends with the default."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def __call__(
        self, name: str, convert: Callable[[str], Any], default: Any, unit: str, text: str, without: str = ""
    ) -> None:
        """`without` says what happens without the option, when `default` itself does not."""
        shown = without or (f"{default:g}" if isinstance(default, float) else default)
        described = f"{text} (default: {shown})"
        self._group.add_argument(name, type=convert, default=default, metavar=unit, help=described)

    def required(self, name: str, convert: Callable[[str], Any], unit: str, text: str) -> None:
        self._group.add_argument(name, type=convert, required=True, metavar=unit, help=f"{text} (required)")

    def choice(self, name: str, values: tuple[str, ...], default: Any, text: str, without: str = "") -> None:
        described = f"{text} (default: {without or default})"
        self._group.add_argument(name, choices=values, default=default, help=described)

    def flag(self, name: str, text: str) -> None:
        self._group.add_argument(name, action="store_true", help=text)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minisgl",
        description="Serve one language model over the OpenAI API.",
        epilog="Environment: MINISGL_API_KEY or MINISGL_API_KEY_FILE instead of --api-key; for debugging, "
        f"{NO_OVERLAP}=1 runs the steps of the engine one after the other, and {CHECK_RANKS}=1 compares them "
        "between the ranks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minisgl {minisgl.__version__}")

    add = _Group(parser, "model")
    add.required("--model", _text, "DIR_OR_ID", "a Hugging Face directory, or an id on the Hub to download")
    add("--revision", _text, None, "NAME", "branch, tag or commit of a model on the Hub", "its main branch")
    add("--served-model-name", _text, None, "NAME", "name in the API", "the id, or the directory's name")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    add.choice("--dtype", dtypes, "auto", "numbers; auto is float32 on a CPU, the checkpoint's on a GPU")
    weights = "fp8 rounds the weights of the linear layers to 8 bits as they are read"
    add.choice("--quantization", ("none", "fp8"), ENGINE.quantization, weights)
    add.flag("--dummy-weight", "random weights instead of the checkpoint's: same speed, meaningless text")

    add = _Group(parser, "server")
    add("--host", _text, SERVER.host, "ADDRESS", "address to listen on")
    add("--port", _integer(0, 65535), None, "PORT", "port, 0 for a free one", f"{SERVER.port}; with --shell, 0")
    add("--api-key", _text, None, "KEY", "what clients must send as 'Authorization: Bearer KEY'", "none is needed")
    add("--num-tokenizer", _integer(1, 64), 1, "N", "tokenizer processes")
    calls = "how the model writes tool calls; auto is what its chat template shows"
    add.choice("--tool-parser", ("auto", "qwen", "llama3", "none"), "auto", calls)
    thoughts = "whether answers may begin with a thought between <think> and </think>; auto as the template shows"
    add.choice("--reasoning-parser", ("auto", "think", "none"), "auto", thoughts)
    waiting = "requests that may wait beyond those that run; more get status 429"
    add("--max-queued-requests", _integer(0), SERVER.max_queued_requests, "N", waiting)
    largest = "largest request body; a larger one gets status 413"
    add("--max-body-size", _integer(1), SERVER.max_body_size, "BYTES", largest)
    grace = "after SIGTERM, how long new requests are still served"
    add("--drain-grace", _number(0), SERVER.drain_grace, "SECONDS", grace)
    timeout = "after the grace time, how long requests in flight may take"
    add("--drain-timeout", _number(0), SERVER.drain_timeout, "SECONDS", timeout)
    levels = ("debug", "info", "warning", "error")
    add.choice("--log-level", levels, None, "least serious messages to log", "info; with --shell, warning")
    add.choice("--log-format", ("text", "json"), "text", "lines for people, or a JSON object a line")
    add.flag("--no-page", "do not serve the page for people at /")
    traces = "send an OpenTelemetry span of each generating request to this URL, by OTLP over HTTP"
    add("--otlp-traces-endpoint", _url, None, "URL", traces, "none")
    add.flag("--shell", "chat with the model in this terminal; the server ends with the chat")

    add = _Group(parser, "server over HTTPS")
    add("--ssl-certfile", _text, None, "FILE", "the server's certificate and those above it, in PEM", "plain HTTP")
    add("--ssl-keyfile", _text, None, "FILE", "its private key, in PEM", "plain HTTP")
    add("--ssl-keyfile-password", _text, None, "PASSWORD", "of the key, if it is encrypted", "none")
    clients = "authorities, in PEM, one of which must have signed the certificate of each client"
    add("--ssl-ca-certs", _text, None, "FILE", clients, "clients need none")

    add = _Group(parser, "engine")
    add.choice("--device", ("auto", "cpu", "cuda"), "auto", "where the model runs; auto is cuda if there is a GPU")
    add("--tp", _integer(1, 64), ENGINE.tp_size, "N", "tensor parallelism: ranks that the model is split over")
    add.flag("--disable-pynccl", "with several GPUs: let torch.distributed call NCCL")
    backends = f"attention backend, or one for prefill and one for decode, of {', '.join(ATTENTION_BACKENDS)}"
    backends += "".join(f"; {short} is {name}" for short, name in ATTENTION_SHORT.items())
    add("--attn", _attention, ENGINE.attention, "NAME[,NAME]", backends, ENGINE.attention[0])
    graphs = "most requests of a decode step that runs as a CUDA graph, 0 for none"
    add("--cuda-graph-max-batch", _integer(0, 65536), ENGINE.cuda_graph_max_batch, "N", graphs)
    kernels = f"where compiled kernels are kept, or {KERNEL_CACHE}; `python -m minisgl.kernel build` fills it"
    add("--kernel-cache", _text, None, "DIR", kernels, "the libraries' own places")
    add.choice("--cache", ("radix", "naive"), SCHEDULER.cache, "prefix cache: a radix tree, or none")
    kept = "how the KV pool keeps numbers; auto is as --dtype says, fp8 in 8 bits"
    add.choice("--kv-cache-dtype", ("auto", "fp8"), ENGINE.kv_cache_dtype, kept)
    sizes = "64 on a GPU, 16 on a CPU"
    add("--page-size", _integer(1, 1024), None, "TOKENS", "tokens of one page of the KV pool", sizes)
    add("--num-pages", _integer(1), None, "N", "pages of the KV pool", "what --memory-ratio allows")
    share = "share of the free memory for model and KV pool, above 0 and at most 1"
    add("--memory-ratio", _number(0, 1, exclusive=True), None, "RATIO", share, f"{ENGINE.memory_ratio:g}")
    longest = "longest request, prompt and answer together"
    add("--max-seq-len", _integer(2), None, "TOKENS", longest, "the model's limit")
    most = ENGINE.max_running_requests
    add("--max-running-requests", _integer(1, 65536), most, "N", "requests that run at once")
    chunk = "tokens of one step of the engine; longer prompts are read in chunks"
    add("--max-prefill-length", _integer(1), SCHEDULER.prefill_budget, "TOKENS", chunk)
    return parser


def _text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s]*", value):
        raise argparse.ArgumentTypeError(f"must be a URL such as http://localhost:4318/v1/traces, not {value!r}")
    return value


def _integer(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", value) or not least <= int(value) <= most:
            limits = f"from {least} to {most}" if most < 2**31 - 1 else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"must be a whole number {limits}, not {value!r}")
        return int(value)

    return convert


def _number(least: float, most: float = 1e6, *, exclusive: bool = False) -> Callable[[str], float]:
    def convert(value: str) -> float:
        number = float(value) if re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", value) else float("nan")
        if not least <= number <= most or (exclusive and number == least):
            above = f"above {least:g} and at most" if exclusive else f"from {least:g} to"
            raise argparse.ArgumentTypeError(f"must be a number {above} {most:g}, not {value!r}")
        return number

    return convert


def _attention(value: str) -> tuple[str, str]:
    names = [ATTENTION_SHORT.get(name, name) for name in value.split(",")]
    if len(names) > 2 or not set(names) <= set(ATTENTION_BACKENDS):
        allowed = ", ".join(ATTENTION_BACKENDS)
        raise argparse.ArgumentTypeError(f"must be one or two, with a comma, of: {allowed}; not {value!r}")
    return names[0], names[-1]
