"""`profile`: where the time of a step goes, kernel by kernel, and where in this repository each one is.

A decode step is the difference between two runs of the same requests, of few and of many tokens. Kernels that are
set up while the one before still runs count that wait as theirs, so their sum can be more than the step takes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import minisgl.kernel
from bench import report
from bench.arguments import MODEL_HELP, add_dtype
from bench.dummy import model_path, weightless
from bench.engines import MiniSGLang
from bench.standard import GPU_CASES, Case
from bench.workload import uniform
from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError

FEW, MANY = 9, 41
"""Tokens of each request, in the two runs of a decode step."""
SHOWN = 14
"""Lines of a table; the JSON has all."""

Times = dict[str, tuple[float, int]]
"""Of each kernel: microseconds in all, and calls."""


@dataclass(frozen=True)
class Line:
    """A kernel in one step, or in one prefill of everything."""

    name: str
    where: str
    """The module of this package that has it; empty for a library's."""
    microseconds: float
    calls: float


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--cases", default="", help="names of cases, with commas (default: steps and prefills)")
    add_dtype(parser)
    parser.add_argument("--options", default="{}", help="JSON: more arguments of minisgl.llm.LLM")
    report.add_out(parser)


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not report.gpu_name():
        raise UserError("there is no GPU here, and this is about its kernels")
    known = {case.name: case for case in GPU_CASES if case.command in ("step", "prefill")}
    names = args.cases.split(",") if args.cases else list(known)
    unknown = set(names) - set(known)
    if unknown:
        parser.error(f"--cases {','.join(sorted(unknown))}: cases are {', '.join(known)}")
    options = {"dtype": args.dtype, "dummy_weight": weightless(args.model)} | json.loads(args.options)
    engine = MiniSGLang(str(args.model), options, temperature=0.6)
    vocab_size = ModelConfig.load(args.model).vocab_size
    results: dict[str, Any] = {}
    try:
        for name in names:
            lines = profile_case(engine, known[name], vocab_size)
            print_lines(known[name].text, lines)
            results[name] = [vars(line) for line in lines]
    finally:
        engine.close()
    report.save(args, "profile", results)


def profile_case(engine: MiniSGLang, case: Case, vocab_size: int) -> list[Line]:
    """The longest first."""
    if case.command == "prefill":
        return to_lines(_times(engine, case, 1, vocab_size), {}, 1)
    few, many = (_times(engine, case, tokens, vocab_size) for tokens in (FEW, MANY))
    return to_lines(many, few, MANY - FEW)


def _times(engine: MiniSGLang, case: Case, tokens: int, vocab_size: int) -> Times:
    workload = uniform(case.seed, case.requests, case.inputs, (tokens, tokens), vocab_size)
    engine.run(workload)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        engine.run(workload)
        torch.cuda.synchronize()
    times = {event.key: (event.self_device_time_total, event.count) for event in found.key_averages()}
    if not any(time for time, _ in times.values()):
        raise UserError("the profiler saw no kernel: may CUPTI, which comes with torch, count here?")
    return times


def to_lines(times: Times, less: Times, steps: int) -> list[Line]:
    """What is in `times` and not in `less`, a step, the longest first."""
    where = kernel_modules()
    lines = []
    for name, (time, calls) in times.items():
        less_time, less_calls = less.get(name, (0.0, 0))
        line = Line(name, where.get(name, ""), round((time - less_time) / steps, 2), (calls - less_calls) / steps)
        if line.microseconds > 0 and line.calls > 0:  # not what only the prefills, of both runs, took
            lines.append(line)
    return sorted(lines, key=lambda line: -line.microseconds)


def kernel_modules() -> dict[str, str]:
    """Of each kernel of this package, by its name in a profile, the file that has it."""
    try:
        from triton.runtime.jit import JITFunction  # noqa: PLC0415  not on every machine
    except ImportError:
        return {}
    return {
        name: f"kernel/{module.name}.py"
        for module in iter_modules(minisgl.kernel.__path__)
        for name, value in vars(import_module(f"minisgl.kernel.{module.name}")).items()
        if isinstance(value, JITFunction) and value.fn.__module__ == f"minisgl.kernel.{module.name}"
    }


def print_lines(text: str, lines: list[Line]) -> None:
    total = sum(line.microseconds for line in lines)
    print(f"\n{text}: {total / 1e3:.3f} ms of kernels")
    print(f"  {'ms':>9}{'share':>8}{'calls':>8}  kernel")
    for line in lines[:SHOWN]:
        where = f" ({line.where})" if line.where else ""
        share = line.microseconds / total
        print(f"  {line.microseconds / 1e3:>9.4f}{share:>8.1%}{line.calls:>8.1f}  {line.name[:70]}{where}")
