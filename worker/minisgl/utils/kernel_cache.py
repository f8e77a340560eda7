"""One directory for the kernels that libraries compile: a volume, or a part of an image."""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from minisgl.utils.errors import UserError

KERNEL_CACHE = "MINISGL_KERNEL_CACHE"


def use_kernel_cache(directory: str, environ: MutableMapping[str, str]) -> Path:
    """Point Triton and FlashInfer there, by the environment of this process and its children; made if need be.

    What cannot be written to is copied to where Triton's kernels are kept anyway, since one may be missing. They
    name each other by absolute paths: a directory is of use under the path that it was filled under, or beside it.
    Raises `UserError` when there can be no such directory.
    """
    path = Path(directory).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            environ.update({"TRITON_CACHE_DIR": str(path / "triton"), "FLASHINFER_WORKSPACE_BASE": str(path)})
        elif (path / "triton").is_dir():
            own = environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
            shutil.copytree(path / "triton", own, copy_function=shutil.copyfile, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"--kernel-cache {directory}: cannot be used: {error.strerror or error}") from None
    return path
