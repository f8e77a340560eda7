"""One directory for the kernels that libraries compile: a volume, or a part of an image."""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from minisgl.utils.errors import UserError

KERNEL_CACHE = "MINISGL_KERNEL_CACHE"
FLASHINFER = "FLASHINFER_WORKSPACE_BASE"
COPIED = {
    "triton": ("TRITON_CACHE_DIR", ".triton/cache"),
    "flash_attn": ("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", ".cache/flash_attn"),
}
"""Folders of the directory: the variable that leads a library there, and where it looks in the home otherwise."""
VARIABLES = (FLASHINFER, *(variable for variable, _ in COPIED.values()))
"""All that `use_kernel_cache` may set."""


def use_kernel_cache(directory: str, environ: MutableMapping[str, str]) -> Path:
    """Point the libraries there, by the environment of this process and its children; made if need be.

    What cannot be written to is copied to where kernels are kept anyway, since one may be missing. Triton's name
    each other by absolute paths: a directory is of use under the path that it was filled under, or beside it.
    Raises `UserError` when there can be no such directory.
    """
    path = Path(directory).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            environ[FLASHINFER] = str(path)
            environ.update({variable: str(path / name) for name, (variable, _) in COPIED.items()})
            return path
        for name, (variable, default) in COPIED.items():
            if (path / name).is_dir():
                own = environ.setdefault(variable, str(Path.home() / default))
                shutil.copytree(path / name, own, copy_function=shutil.copyfile, dirs_exist_ok=True)
    except OSError as error:
        raise UserError(f"--kernel-cache {directory}: cannot be used: {error.strerror or error}") from None
    return path
