"""`suite`: the standard set, in one table beside the floor and the other engines. What ``make bench`` runs.

On an H200 the set is the one that the other engines were measured with. Without a GPU it is a small one, on the
small real model, and says something of this processor alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import online, report, start, sums
from bench.arguments import add_ceilings, add_dtype, floor_of, positive
from bench.dummy import model_path, weightless
from bench.engines import MiniSGLang
from bench.figures import Figure, print_figures
from bench.standard import CPU_CASES, GPU_CASES
from bench.throughput import run_case
from minisgl.models.config import ModelConfig
from minisgl.utils.errors import UserError

SMALL = Path(".models") / "SmolLM2-135M-Instruct"
GPU_OPTIONS: dict[str, Any] = {"page_size": 64, "max_seq_len": 4096, "prefill_budget": 16384}
GPU_SERVER = "--page-size 64 --max-seq-len 4096 --max-prefill-length 16384"
PARTS = ("start", "online", "host", "cases")


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", default="", help="a directory or dimensions (default: Qwen3-0.6B)")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--cases", default="", help="names of cases, with commas (default: all)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas, of {', '.join(PARTS)}")
    add_dtype(parser)
    parser.add_argument("--options", default="{}", help="JSON: more arguments of minisgl.llm.LLM")
    parser.add_argument("--seconds", type=float, default=20, help="of each rate of the online run")
    parser.add_argument("--server-options", default="", help="more options of python -m minisgl")
    report.add_out(parser)
    add_ceilings(parser)


def main(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    unknown = set(args.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    gpu = report.gpu_name()
    names = [case.name for case in (GPU_CASES if gpu else CPU_CASES)]
    unknown = set(args.cases.split(",") if args.cases else []) - set(names)
    if unknown:
        parser.error(f"--cases {','.join(sorted(unknown))}: cases are {', '.join(names)}")
    if not gpu:
        print("No GPU here: this measures the processor, with a small model. README.md has figures of an H200.")
    args.model = _model(args.model, gpu)
    options = {"dtype": args.dtype, "dummy_weight": weightless(args.model)} | (GPU_OPTIONS if gpu else {})
    options |= json.loads(args.options)
    server = f"{GPU_SERVER if gpu else ''} {args.server_options}"
    figures: list[Figure] = []
    results: dict[str, Any] = {}
    # Other processes first: what runs in this one keeps its memory on the GPU.
    if "start" in args.only:
        results["start"], found = start.measure(args.model, server, args.runs if gpu else 1)
        figures += found[:2]
    if "online" in args.only:
        results["online"] = _online(args.model, server, args.seconds, bool(gpu))
    if "host" in args.only:
        batch = 256 if gpu else 16
        results["host"] = _host(args.model, options, batch)
        milliseconds = results["host"]["with the engine"]["host"] / 1e3
        text = f"host time of a decode step of {batch} requests"
        figures.append(Figure(f"host-{batch}", text, milliseconds, "ms"))
    if "cases" in args.only:
        results["cases"], found = _cases(args, options, gpu)
        figures += found
    if figures:
        print_figures(f"{args.model.resolve().name} on {gpu or 'a processor'}, {args.dtype}", figures)
    path = report.save(args, "suite", results | {"figures": [figure.as_json() for figure in figures]})
    if find_spec("matplotlib") is None:
        print(
            "no pictures: matplotlib is not installed (pip install -e '.[bench]'; python -m bench plot FILE later)"
        )
    else:
        from bench import plots  # noqa: PLC0415  needs what need not be installed

        plots.draw(path)


def _model(given: str, gpu: str) -> Path:
    if not given and not gpu and not SMALL.is_dir():
        raise UserError(f"{SMALL}: no such directory; `make model` makes it")
    return model_path(given or ("Qwen3-0.6B" if gpu else str(SMALL)))


def _cases(args: argparse.Namespace, options: dict[str, Any], gpu: str) -> tuple[list[Any], list[Figure]]:
    """Every case on one engine in this process."""
    config = ModelConfig.load(args.model)
    floor = floor_of(args, config, options, gpu)
    results: list[Any] = []
    figures = []
    every = GPU_CASES if gpu else CPU_CASES
    wanted = args.cases.split(",") if args.cases else [case.name for case in every]
    cases = [case for case in every if case.name in wanted]
    tp = options.get("tp_size", 1)
    added = sums.of_cases(config, tp, cases, options["prefill_budget"]) if gpu and tp > 1 else {}
    engine = MiniSGLang(str(args.model), options, temperature=0.0)
    for case in cases:
        engine.temperature = case.temperature
        result = run_case(case, {"minisgl": engine}, config, floor, args.runs if gpu else 1, options)[0]
        results.append(result)
        figures.append(Figure.of_json(result["figure"]))
        figures += [added[case.name]] if case.name in added else []
    engine.close()
    return results, figures


def _host(model: Path, options: dict[str, Any], batch: int) -> dict[str, Any]:
    """In a process of its own, which gives the GPU's memory back when it ends."""
    size = ["--context", "200", "--steps", "200"] if batch > 16 else ["--context", "16", "--steps", "20"]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "host.json"
        command = [sys.executable, "-m", "bench", "host", "--model", str(model), "--batch", str(batch), *size]
        subprocess.run([*command, "--options", json.dumps(options), "--out", str(out)], check=True)
        found: dict[str, Any] = json.loads(out.read_text())["results"]
    return found


def _online(model: Path, server: str, seconds: float, gpu: bool) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    online.add_arguments(parser, "online")
    small = ("--prefix", "100", "--question", "20", "--answer", "20", "--burst", "8", "--rates", "0.5,1,2")
    given = ("--model", str(model), "--server-options", server, "--seconds", str(seconds))
    args = parser.parse_args([*given, *(() if gpu else small)])
    return online.measure(args, online.shape_of(args))
