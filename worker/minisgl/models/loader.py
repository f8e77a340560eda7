"""From a checkpoint to a model: each rank reads its part of every tensor straight to where it stays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
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
from minisgl.models.reading import Filling, Source
from minisgl.models.transformer import Transformer

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""What weights may be stored as. They are converted when the model runs in another type."""


def begin_loading(
    config: ModelConfig,
    path: Path,
    comm: Communicator,
    *,
    device: torch.device,
    dtype: torch.dtype,
    dummy: bool = False,
    quantization: Quantization = "none",
) -> tuple[Transformer, Filling]:
    """This rank's part of the model in directory `path`, on `device` in `dtype`, ready to run.

    On a GPU its weights are still being read, by what is returned beside it; those that have not come are 0, so
    that it can run meanwhile: only its output means nothing.

    `dummy`: no weight is read; they are drawn from a normal distribution of std 0.02, norms are 1.
    `quantization`: fp8 rounds the linear layers' tensors as they are read: the device holds few of them unrounded.
    Raises `ModelError` naming the tensor that is missing, unknown, or of a shape other than the configuration's.
    """
    # What is to be rounded never takes memory unrounded.
    with torch.device("meta") if quantization == "fp8" else device:
        model = Transformer(config, comm, dtype)
        for module in model.modules():
            if quantization == "fp8" and isinstance(module, Linear):
                module.to_fp8()
    if quantization == "fp8":
        model.to_empty(device=device)
    if dummy:
        _randomize(model, device, dtype)
        filling = Filling((), device)
    else:
        if device.type == "cuda":
            for tensor in model.state_dict().values():
                tensor.zero_()
        filling = read_weights(model, path, device)
        if device.type == "cpu":
            filling.wait()  # `prepare` copies them
    model.prepare()
    return model.eval(), filling


def read_weights(model: Transformer, path: Path, device: torch.device) -> Filling:
    """Begin to fill the parameters, on `device`, from the checkpoint in directory `path`.

    Raises as `begin_loading` does.
    """
    wanted = list(pieces(model))
    check_coverage(wanted, model)
    found = {name: (file, entry) for file in weight_files(path) for name, entry in read_header(file).items()}
    sources = []
    for piece in wanted:
        if piece.name not in found:
            raise ModelError(f"{path}: tensor {piece.name} is missing")
        file, entry = found[piece.name]
        if entry.shape != piece.shape:
            raise ModelError(
                f"{file}: tensor {piece.name} has shape {list(entry.shape)}; "
                f"allowed: {list(piece.shape)}, as config.json says"
            )
        dtype = DTYPES.get(entry.dtype)
        if dtype is None or entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise ModelError(
                f"{file}: tensor {piece.name} has {entry.size} bytes of type {entry.dtype}; "
                f"allowed: as many as its shape takes, of {', '.join(DTYPES)}"
            )
        sources.append(Source(file, entry.start, dtype))
    read = {piece.name for piece in wanted}
    unknown = next((name for name in found if name not in read and not is_redundant(name, model)), None)
    if unknown is not None:
        raise ModelError(
            f"{found[unknown][0]}: tensor {unknown} is unknown to {model.config.architecture} as config.json says"
        )
    return Filling(zip(wanted, sources, strict=True), device)


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
