"""One directory for the kernels that libraries compile: a volume, or a part of an image."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from minisgl.utils.errors import UserError

KERNEL_CACHE = "MINISGL_KERNEL_CACHE"


def use_kernel_cache(directory: str, environ: MutableMapping[str, str]) -> Path:
    """Point Triton and FlashInfer there, by the environment of this process and its children; made if need be.

    Triton keeps absolute paths inside: what was built in a directory is found again under the same path only.
    Raises `UserError` when there can be no such directory.
    """
    path = Path(directory).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--kernel-cache {directory}: cannot be made: {error.strerror}") from None
    environ["TRITON_CACHE_DIR"] = str(path / "triton")
    if os.access(path, os.W_OK):  # FlashInfer writes a log and locks even where all is built
        environ["FLASHINFER_WORKSPACE_BASE"] = str(path)
    return path
