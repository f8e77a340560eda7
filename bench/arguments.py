"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from bench import report
from bench.dummy import model_path
from bench.floors import Ceilings, Floor
from minisgl.models.config import ModelConfig

MODEL_HELP = "a Hugging Face directory, or dimensions (random weights) such as Qwen3-0.6B"
KNOWN_GPU = "NVIDIA H200"
"""The one whose ceilings are the defaults."""


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    add_dtype(parser)
    parser.add_argument("--options", default="{}", help="JSON: more arguments of minisgl.llm.LLM")
    report.add_out(parser)
    add_ceilings(parser)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    default = "bfloat16" if report.gpu_name() else "float32"
    parser.add_argument("--dtype", default=default, choices=["float32", "bfloat16", "float16"])


def add_ceilings(parser: argparse.ArgumentParser) -> None:
    known = Ceilings()
    measured = "measured for an H200, no floor is printed for others"
    parser.add_argument(
        "--bandwidth", type=float, help=f"the floor's bytes/s (default: {known.bytes_per_second:g}, {measured})"
    )
    parser.add_argument(
        "--flops", type=float, help=f"the floor's FLOP/s (default: {known.flops_per_second:g}, {measured})"
    )


def floor_of(args: argparse.Namespace, model: ModelConfig, options: Mapping[str, Any], gpu: str) -> Floor | None:
    """The floor on the machine that the options describe, or on `gpu` if it is known; else None."""
    known = Ceilings()
    if args.bandwidth is None and args.flops is None and gpu != KNOWN_GPU:
        return None
    given = Ceilings(args.bandwidth or known.bytes_per_second, args.flops or known.flops_per_second)
    return Floor.of(model, str(options.get("dtype", args.dtype)), options, given)


def positive(text: str) -> int:
    """A number of things of which there must be one."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a number of 1 or more is expected")
    return number


def length_range(text: str) -> tuple[int, int]:
    """``LOW:HIGH``, or one number for both."""
    low, _, high = text.partition(":")
    try:
        pair = int(low), int(high or low)
    except ValueError:
        pair = 0, 0
    if not 1 <= pair[0] <= pair[1]:
        raise argparse.ArgumentTypeError(f"'{text}': LOW:HIGH with 1 <= LOW <= HIGH is expected")
    return pair
