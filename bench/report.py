"""Results as JSON that says what was measured, on what, and from which commit."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
"""Variables that change the speed of operators on a CPU."""


RESULTS = Path(__file__).parent / "results"


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: under bench/results)")


def gpu_name() -> str:
    """The first GPU's, as its driver says; empty without one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def machine_name() -> str:
    """For file names: ``h200``, or ``cpu``."""
    name = gpu_name().lower().removeprefix("nvidia ")
    return "-".join(name.split()) or "cpu"


def save(args: argparse.Namespace, name: str, results: Any) -> Path:
    """Write `results` where ``--out`` says, else under `RESULTS` by machine, model and `name`."""
    model = args.model.resolve().name
    path = args.out or RESULTS / f"{machine_name()}-{model}-{name}.json"
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "url", "model")}
    write(path, results, {"model": model} | settings)
    return path


def write(path: Path, results: Any, settings: dict[str, Any]) -> None:
    """Write `results` with what is needed to measure them again."""
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | _versions("torch", "transformers", "minisgl", "triton", "flashinfer-python", "flash-attn"),
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "settings": settings,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {path}")


def _commit() -> str:
    if "MINISGL_BENCH_COMMIT" in os.environ:  # a copy of the tree without its history
        return os.environ["MINISGL_BENCH_COMMIT"]
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return ran.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
