"""From a checkpoint to a model: each rank reads its part of every tensor straight to where it stays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from minisgl.core.config import Quantization
from minisgl.distributed import Communicator
from minisgl.layers.linear import Linear
from minisgl.layers.norm import RMSNorm
from minisgl.layers.quantized import FP8, round_rows
from minisgl.layers.weights import Piece
from minisgl.models.checkpoint import read_header, weight_files
from minisgl.models.config import ModelConfig
from minisgl.models.fields import ModelError
from minisgl.models.mapping import is_redundant, pieces
from minisgl.models.transformer import Transformer

READERS = 8
"""Most threads that read at once: enough to keep a disk's queue full."""

PIECES_PER_TASK = 32
"""Tensors that a thread reads before it opens a file again."""


def load_model(
    config: ModelConfig,
    path: Path,
    comm: Communicator,
    *,
    device: torch.device,
    dtype: torch.dtype,
    dummy: bool = False,
    quantization: Quantization = "none",
) -> Transformer:
    """This rank's part of the model in directory `path`, on `device` in `dtype`, ready to run.

    `dummy`: no weight is read; they are drawn from a normal distribution of std 0.02, norms are 1.
    `quantization`: fp8 rounds the linear layers' tensors as they are read: the device holds few of them unrounded.
    Raises `ModelError` naming the tensor that is missing, unknown, or of a shape other than the configuration's.
    """
    with torch.device("meta"):
        model = Transformer(config, comm, dtype)
        for module in model.modules():
            if quantization == "fp8" and isinstance(module, Linear):
                module.to_fp8()
    model.to_empty(device=device)
    if dummy:
        _randomize(model, device, dtype)
    else:
        _read(model, path)
    if quantization != "none" and device.type == "cuda":
        torch.cuda.empty_cache()  # what rounding took is the KV pool's now
    model.prepare()
    return model.eval()


def _read(model: Transformer, path: Path) -> None:
    wanted = list(pieces(model))
    check_coverage(wanted, model)
    found = {name: (file, shape) for file in weight_files(path) for name, shape in read_header(file).items()}
    by_file: dict[Path, list[Piece]] = {}
    for piece in wanted:
        if piece.name not in found:
            raise ModelError(f"{path}: tensor {piece.name} is missing")
        file, shape = found[piece.name]
        if shape != piece.shape:
            raise ModelError(
                f"{file}: tensor {piece.name} has shape {list(shape)}; "
                f"allowed: {list(piece.shape)}, as config.json says"
            )
        by_file.setdefault(file, []).append(piece)
    read = {piece.name for piece in wanted}
    unknown = next((name for name in found if name not in read and not is_redundant(name, model)), None)
    if unknown is not None:
        raise ModelError(
            f"{found[unknown][0]}: tensor {unknown} is unknown to {model.config.architecture} as config.json says"
        )
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        tasks = [
            pool.submit(_fill, file, some[first : first + PIECES_PER_TASK])
            for file, some in by_file.items()
            for first in range(0, len(some), PIECES_PER_TASK)
        ]
        for task in tasks:
            task.result()


def _fill(file: Path, some: Iterable[Piece]) -> None:
    with torch.inference_mode(), safe_open(file, framework="pt") as tensors:
        for piece in some:
            values = tensors.get_slice(piece.name)[piece.source or ...]
            if piece.scale is None:
                piece.target.copy_(values)
            else:
                round_rows(values, piece.target, piece.scale)


def check_coverage(some: Iterable[Piece], model: nn.Module) -> None:
    """Raise `RuntimeError` unless the pieces tile every parameter, so that each element is filled exactly once."""
    targets: dict[int, list[tuple[int, int]]] = {}
    for piece in some:
        target = piece.target
        if not target.is_contiguous():
            raise RuntimeError(f"{piece.name}: its part of the parameter is not contiguous")
        start = int(target.storage_offset())
        span = (start, start + target.numel())
        targets.setdefault(target.untyped_storage().data_ptr(), []).append(span)
    for name, parameter in model.named_parameters():
        spans = sorted(targets.get(parameter.untyped_storage().data_ptr(), []))
        bounds = [0, *(stop for _, stop in spans)]
        if [start for start, _ in spans] != bounds[:-1] or bounds[-1] != parameter.numel():
            raise RuntimeError(f"{name}: the checkpoint's tensors do not fill it exactly once")


def _randomize(model: Transformer, device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, RMSNorm):
                parameter.fill_(1)
            elif isinstance(module, Linear) and module.scale is not None and parameter.dtype == FP8:
                values = torch.empty(parameter.shape, dtype=dtype, device=device)
                round_rows(values.normal_(std=0.02, generator=generator), parameter, module.scale)
            else:
                parameter.normal_(std=0.02, generator=generator)
