"""`plot`: results as SVG pictures beside their JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator

COLORS = ("#0b6e4f", "#d1603d", "#3d5a80", "#c9a227", "#7a6c8f")
"""Of engines, in their order; told apart by people who see few colours too."""
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.hashsalt": "minisgl",  # the same figures give the same file
}


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="JSON of the commands suite, online or soak")


def main(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> None:
    for path in args.files:
        draw(path)


def draw(path: Path) -> list[Path]:
    """Every picture that the results at `path` give, written beside it; returns where."""
    document = json.loads(path.read_text())
    results, machine = document["results"], _machine(document)
    about = f"{document['settings']['model']}, {machine}, {document['date'][:10]}"
    command = document["settings"]["command"]
    pictures: dict[str, Canvas] = {}
    if command == "suite" and any(figure["floor"] is not None for figure in results["figures"]):
        pictures[""] = figures_picture(results["figures"], about)
    if command == "suite" and "online" in results:
        pictures["-online"] = online_picture(results["online"], about)
    if command == "online":
        pictures[""] = online_picture(results, about)
    if command == "soak":
        pictures[""] = soak_picture(results, about)
    written = []
    for suffix, picture in pictures.items():
        target = path.with_name(f"{path.stem}{suffix}.svg")
        with mpl.rc_context(STYLE):
            picture.savefig(target, metadata={"Date": None})
        print(f"drawn in {target}")
        written.append(target)
    return written


def _machine(document: dict[str, Any]) -> str:
    """The GPUs that were used, of those that were there."""
    gpus = document["machine"]["gpus"]
    if not gpus:
        return "CPU"
    used = json.loads(document["settings"].get("options", "{}")).get("tp_size", 1)
    return f"{used} x {gpus[0]}" if used > 1 else str(gpus[0])


def figures_picture(figures: list[dict[str, Any]], about: str) -> Canvas:
    """A group of bars for each figure with a floor: how many times the floor each engine takes."""
    shown = [figure for figure in figures if figure["ratio_to_floor"] is not None]
    engines = ["MiniSGLang", *dict.fromkeys(engine for figure in shown for engine in figure["peers"])]
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(8, 1.3 + 0.2 * len(shown) * (len(engines) + 1)), layout="constrained")
        axes = canvas.subplots()
        height = 0.8 / len(engines)
        for place, engine in enumerate(engines):
            ratios = [ratio_of(figure, engine) for figure in shown]
            rows = [index + (place - (len(engines) - 1) / 2) * height for index in range(len(shown))]
            bars = axes.barh(rows, [ratio or 0 for ratio in ratios], height, label=engine, color=COLORS[place])
            axes.bar_label(bars, [f"{ratio:.2f}" if ratio else "" for ratio in ratios], padding=3, fontsize=7)
        axes.axvline(1, color="#222222", linewidth=1)
        axes.set_yticks(range(len(shown)), [wrapped(figure["text"]) for figure in shown])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("times the floor (1: what memory and tensor cores allow); less is better")
        axes.set_title(about)
        canvas.legend(loc="outside lower center", ncols=len(engines))
    return canvas


def ratio_of(figure: dict[str, Any], engine: str) -> float | None:
    """How many times the floor `engine` takes; None where it was not measured."""
    value = figure["value"] if engine == "MiniSGLang" else figure["peers"].get(engine)
    if value is None:
        return None
    ratio: float = figure["ratio_to_floor"] * (value / figure["value"])
    return figure["ratio_to_floor"] / (value / figure["value"]) if figure["unit"].endswith("/s") else ratio


def online_picture(results: dict[str, Any], about: str) -> Canvas:
    """Against the offered rate: what was answered, and the two times that a client feels, p50 and p99."""
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(10, 3.4), layout="constrained")
        served, first, per_token = canvas.subplots(1, 3)
        for color, engine in zip(COLORS, results["engines"], strict=False):
            points = engine["rates"]
            offered = [point["offered"] for point in points]
            served.plot(offered, [point["achieved"] for point in points], "o-", color=color, label=engine["name"])
            _latency(first, offered, points, "first_token", color, engine["name"])
            _latency(per_token, offered, points, "per_token", color, engine["name"])
        most = max(point["offered"] for engine in results["engines"] for point in engine["rates"])
        served.plot([0, most], [0, most], color="#aaaaaa", linewidth=1, linestyle=":", label="as offered")
        first.set_yscale("log")
        first.yaxis.set_major_formatter("{x:g}")
        first.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # labels of all nine would overlap
        first.yaxis.set_minor_formatter("{x:g}")
        first.tick_params(axis="y", which="minor", labelsize=7)
        for axes, title in (
            (served, "Answered, requests/s"),
            (first, "Time to first token, ms"),
            (per_token, "Time per output token, ms"),
        ):
            axes.set_title(title)
            axes.set_xlabel("offered, requests/s")
            axes.set_xlim(0)
        served.set_ylim(0)
        per_token.set_ylim(0)
        served.legend(loc="upper left")
        first.legend(loc="upper left", fontsize=8)
        canvas.suptitle(about, x=0.01, ha="left", fontsize=9, color="#555555")
    return canvas


def _latency(
    axes: Axes, offered: list[float], points: list[dict[str, Any]], key: str, color: str, name: str
) -> None:
    p50, p99 = ([point[f"{key}_{share}"] for point in points] for share in ("p50", "p99"))
    axes.plot(offered, p50, "o-", color=color, label=f"{name} p50")
    axes.plot(offered, p99, "o--", color=color, linewidth=1.2, markerfacecolor="white", label=f"{name} p99")


def soak_picture(results: dict[str, Any], about: str) -> Canvas:
    """Memory whenever the load had drained, one panel a series."""
    series = dict(results["memory_mib"])
    seconds = series.pop("seconds")
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(8, 0.8 + 1.5 * len(series)), layout="constrained")
        panels = canvas.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values), color in zip(panels, series.items(), COLORS, strict=False):
            axes.plot([second / 60 for second in seconds], values, "o-", color=color, markersize=2.5)
            axes.set_title(f"{name}, MiB, when nothing runs")
            middle, room = (max(values) + min(values)) / 2, max(max(values) - min(values), 16) * 0.75
            axes.set_ylim(middle - room, middle + room)
        panels[-1].set_xlabel("minutes")
        counts = results["counts"]
        canvas.suptitle(
            f"{about}: {counts['requests']:,} requests, {counts['output_tokens']:,} tokens", fontsize=9
        )
    return canvas


def wrapped(text: str, width: int = 34) -> str:
    """Broken into lines at spaces."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
