"""Tensors of safetensors files, straight to where they stay: no copy of a file is ever in the process's memory.

Several threads each take some rows of a tensor at a time: from the file into a small staging buffer, which is
pinned where a GPU copies from it, and from there to their place. While one waits for its copy, others read.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from minisgl.layers.quantized import round_rows
from minisgl.layers.weights import Piece
from minisgl.models.fields import ModelError

READERS = 16
"""Most threads that read at once: they keep a disk's queue full, or copy from the page cache on as many cores."""

STAGING_BYTES = 4 << 20
"""Of a reader's staging buffer; more where a tensor's single row is larger."""


class Source(NamedTuple):
    """Where a tensor is."""

    file: Path
    offset: int
    """Its first byte."""
    dtype: torch.dtype


class Chunk(NamedTuple):
    """Whole rows of a tensor, neighbours in the file, of which `columns` go to `target`.

    Where a rank needs only part of each row it reads the others' parts as well, and keeps none of them. The ranks
    of a host read the same files, so nothing comes from the disk twice.
    """

    source: Source
    shape: tuple[int, ...]
    columns: tuple[slice, ...]
    """Empty: the rows as they are."""
    target: Tensor
    scale: Tensor | None
    """As `Piece.scale`."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.source.dtype.itemsize


class Filling:
    """Threads that read each piece from its source into its target, on `device`, from the construction on.

    They end with the ``with`` block, whatever is left to read then.
    """

    def __init__(self, wanted: Iterable[tuple[Piece, Source]], device: torch.device) -> None:
        """Raises `ModelError` when a file cannot be opened."""
        some = [chunk for piece, source in wanted for chunk in chunks(piece, source, STAGING_BYTES)]
        some.sort(key=lambda chunk: chunk.source[:2])  # a disk is fastest when it is read in order
        self._todo = deque(some)
        self._device = device
        self._files = {file: _open(file) for file in {chunk.source.file for chunk in some}}
        size = max((chunk.size for chunk in some), default=0)
        count = min(READERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(count)
        self._readers = [
            self._pool.submit(_read, self._todo, self._files, device, size) for _ in range(count if some else 0)
        ]

    def wait(self) -> None:
        """Returns when all are there. Raises `ModelError` when a file cannot be read, or ends early."""
        with self:
            for reader in self._readers:
                reader.result()
            if self._readers and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._todo.clear()
        self._pool.shutdown()
        for file in self._files.values():
            file.close()


def chunks(piece: Piece, source: Source, most: int) -> Iterator[Chunk]:
    """The piece in chunks of at most `most` bytes, or of one row."""
    rows, *inner = piece.shape
    first, last, _ = (piece.source[0] if piece.source else slice(None)).indices(rows)
    columns = piece.source[1:]
    if all(part.indices(n) == (0, n, 1) for part, n in zip(columns, inner, strict=False)):
        columns = ()
    row_bytes = math.prod(inner) * source.dtype.itemsize
    step = max(1, most // max(row_bytes, 1))
    for start in range(first, last, step):
        count = min(step, last - start)
        yield Chunk(
            source._replace(offset=source.offset + start * row_bytes),
            (count, *inner),
            columns,
            piece.target[start - first : start - first + count],
            None if piece.scale is None else piece.scale[start - first : start - first + count],
        )


def _read(todo: deque[Chunk], files: Mapping[Path, FileIO], device: torch.device, size: int) -> None:
    """Move chunks of at most `size` bytes until none is left; another reader's failure ends this one too."""
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    try:
        with torch.inference_mode():
            while todo:
                try:
                    chunk = todo.popleft()
                except IndexError:  # another reader took the last
                    break
                _read_exactly(files[chunk.source.file], buffer.numpy().data[: chunk.size], chunk.source)
                rows = buffer[: chunk.size].view(chunk.source.dtype).view(chunk.shape)
                if chunk.columns or rows.dtype != chunk.target.dtype:  # on the device, which is faster
                    rows = rows.to(device)[(slice(None), *chunk.columns)]
                if chunk.scale is None:
                    chunk.target.copy_(rows)
                else:
                    round_rows(rows, chunk.target, chunk.scale)
    except BaseException:
        todo.clear()
        raise


def _open(file: Path) -> FileIO:
    try:
        return file.open("rb", buffering=0)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None


def _read_exactly(file: FileIO, buffer: memoryview, source: Source) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(file.fileno(), [buffer[done:]], source.offset + done)
        except OSError as error:
            raise ModelError(f"{source.file}: cannot be read: {error.strerror}") from None
        if not count:
            raise ModelError(f"{source.file}: cut short while it was read")
        done += count
