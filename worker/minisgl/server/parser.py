"""The options: their names, types, ranges, defaults and units."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import NoReturn

import minisgl
from minisgl.core.config import EngineConfig, SchedulerConfig
from minisgl.server.config import ServerConfig
from minisgl.utils.errors import UserError

ATTENTION_BACKENDS = ("torch",)
NO_OVERLAP = "MINISGL_DISABLE_OVERLAP_SCHEDULING"
ENGINE, SCHEDULER = EngineConfig(model_path=""), SchedulerConfig()
SERVER = ServerConfig(served_model_name="")
"""These hold the defaults."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minisgl",
        description="Serve one language model over the OpenAI API.",
        epilog=f"Environment: MINISGL_API_KEY or MINISGL_API_KEY_FILE instead of --api-key; {NO_OVERLAP}=1 runs "
        "the steps of the engine one after the other, for debugging.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minisgl {minisgl.__version__}")

    model = parser.add_argument_group("model")
    add = model.add_argument
    add(
        "--model",
        required=True,
        type=_text,
        metavar="DIR_OR_ID",
        help="a directory in Hugging Face format, or an id on the Hugging Face Hub, which is downloaded",
    )
    add("--revision", type=_text, help="branch, tag or commit of a model on the Hub (default: its main branch)")
    add(
        "--served-model-name",
        type=_text,
        metavar="NAME",
        help="name of the model in the API (default: the id, or the directory's name)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="numbers of weights and activations (default: auto: float32 on a CPU, the checkpoint's on a GPU)",
    )
    add(
        "--dummy-weight",
        action="store_true",
        help="random weights instead of the checkpoint's: same speed, meaningless text",
    )

    server = parser.add_argument_group("server")
    add = server.add_argument
    add("--host", type=_text, default=SERVER.host, help="address to listen on (default: %(default)s)")
    add(
        "--port",
        type=_integer(0, 65535),
        help=f"port to listen on, 0 for a free one (default: {SERVER.port}; with --shell, 0)",
    )
    add(
        "--api-key",
        type=_text,
        metavar="KEY",
        help="what clients must send as 'Authorization: Bearer KEY' (default: no key is asked for)",
    )
    add(
        "--num-tokenizer",
        type=_integer(1, 64),
        default=1,
        metavar="N",
        help="tokenizer processes (default: %(default)s)",
    )
    add(
        "--max-queued-requests",
        type=_integer(0),
        default=SERVER.max_queued_requests,
        metavar="N",
        help="requests that may wait beyond those that run; more get status 429 (default: %(default)s)",
    )
    add(
        "--max-body-size",
        type=_integer(1),
        default=SERVER.max_body_size,
        metavar="BYTES",
        help="largest request body; a larger one gets status 413 (default: %(default)s)",
    )
    add(
        "--drain-grace",
        type=_number(0),
        default=SERVER.drain_grace,
        metavar="SECONDS",
        help="after SIGTERM, how long new requests are still served (default: %(default)g)",
    )
    add(
        "--drain-timeout",
        type=_number(0),
        default=SERVER.drain_timeout,
        metavar="SECONDS",
        help="after the grace time, how long requests in flight may take (default: %(default)g)",
    )
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="least serious messages that are logged (default: info; with --shell, warning)",
    )
    add("--shell", action="store_true", help="chat with the model in this terminal; the server ends with the chat")

    engine = parser.add_argument_group("engine")
    add = engine.add_argument
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs (default: auto: cuda if there is a GPU)",
    )
    add(
        "--tp",
        type=_integer(1, 64),
        default=1,
        metavar="N",
        help="tensor parallelism: processes, and GPUs, that the model is split over (default: %(default)s)",
    )
    add(
        "--attn",
        type=_attention,
        default=ENGINE.attention,
        metavar="NAME[,NAME]",
        help="attention backend, or one for prefill and one for decode; known: "
        f"{', '.join(ATTENTION_BACKENDS)} (default: {ENGINE.attention[0]})",
    )
    add(
        "--cache",
        choices=("radix", "naive"),
        default=SCHEDULER.cache,
        help="prefix cache: a radix tree, or none (default: %(default)s)",
    )
    add(
        "--page-size",
        type=_integer(1, 1024),
        default=ENGINE.page_size,
        metavar="TOKENS",
        help="tokens of one page of the KV pool (default: %(default)s)",
    )
    add(
        "--num-pages",
        type=_integer(1),
        metavar="N",
        help="pages of the KV pool (default: what --memory-ratio allows)",
    )
    add(
        "--memory-ratio",
        type=_number(0, 1, exclusive=True),
        metavar="RATIO",
        help="share of the free memory that model and KV pool may take, above 0 and at most 1 "
        f"(default: {ENGINE.memory_ratio:g})",
    )
    add(
        "--max-seq-len",
        type=_integer(2),
        metavar="TOKENS",
        help="longest request, prompt and answer together (default: the model's limit)",
    )
    add(
        "--max-running-requests",
        type=_integer(1, 65536),
        default=ENGINE.max_running_requests,
        metavar="N",
        help="requests that run at once (default: %(default)s)",
    )
    add(
        "--max-prefill-length",
        type=_integer(1),
        default=SCHEDULER.prefill_budget,
        metavar="TOKENS",
        help="tokens of one step of the engine; longer prompts are read in chunks (default: %(default)s)",
    )
    return parser


def _text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("must not be empty")
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
    names = value.split(",")
    if len(names) > 2 or not set(names) <= set(ATTENTION_BACKENDS):
        allowed = ", ".join(ATTENTION_BACKENDS)
        raise argparse.ArgumentTypeError(f"must be one or two, with a comma, of: {allowed}; not {value!r}")
    return names[0], names[-1]
