"""`weights`: a model directory of real size with random weights, so that a start reads what a real one reads."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.arguments import MODEL_HELP
from bench.dummy import model_path
from minisgl.distributed import Communicator
from minisgl.layers.weights import Piece
from minisgl.models.checkpoint import INDEX
from minisgl.models.config import ModelConfig
from minisgl.models.mapping import pieces
from minisgl.models.transformer import Transformer
from minisgl.utils.errors import UserError

FILE_BYTES = 4 << 30
"""About the size of a file: what models on the Hugging Face Hub are cut into."""
WRITERS = 4
STD = 0.02


def add_arguments(parser: argparse.ArgumentParser, _command: str) -> None:
    parser.add_argument("--model", type=model_path, required=True, help=MODEL_HELP)
    parser.add_argument("--to", type=Path, required=True, help="a directory that does not exist yet")


def main(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> None:
    print(f"{args.to}: {write(args.model, args.to) / 1e9:.2f} GB of weights")


def write(model: Path, to: Path) -> int:
    """Copy the configuration and tokenizer of `model` to a new directory, with bfloat16 weights; their bytes.

    Raises `UserError` if the directory exists.
    """
    try:
        to.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"--to {to}: exists; give a directory that does not") from None
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (model / name).exists():
            shutil.copy(model / name, to)
    with torch.device("meta"):
        every = list(pieces(Transformer(ModelConfig.load(model), Communicator(), torch.bfloat16)))
    files = [(f"model-{number:05}.safetensors", part) for number, part in enumerate(_cut(every), start=1)]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda file: _save(to / file[0], file[1]), files))
    (to / INDEX).write_text(
        json.dumps({"weight_map": {piece.name: name for name, part in files for piece in part}})
    )
    return sum((to / name).stat().st_size for name, _ in files)


def _cut(every: list[Piece]) -> Iterator[list[Piece]]:
    """Neighbouring tensors, until they fill a file."""
    part: list[Piece] = []
    size = 0
    for piece in every:
        part.append(piece)
        size += 2 * torch.Size(piece.shape).numel()
        if size >= FILE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _save(path: Path, part: list[Piece]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"  # which draws a hundred times as fast
    drawn = {
        piece.name: torch.empty(piece.shape, dtype=torch.bfloat16, device=device).normal_(std=STD).cpu()
        for piece in part
    }
    save_file(drawn, path)
