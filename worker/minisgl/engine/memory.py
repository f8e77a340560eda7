"""How much memory there is, and how many pages of the KV pool it holds."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from minisgl.core.config import EngineConfig
from minisgl.utils.errors import UserError

AUTOMATIC_CPU_BYTES = 4 << 30
"""Most that all ranks' pools on a CPU take unasked: there, the memory is not the engine's alone."""

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, *, cgroup: Path = CGROUP) -> int:
    """Memory of `device` that this process could still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _available_bytes()
    # A container's limit, in either version of cgroups. File pages not used lately can be reclaimed.
    for folder, limit, usage, reclaimable in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limited = int((folder / limit).read_text())  # "max" is no limit
            used = int((folder / usage).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        free = min(free, limited - used + int(statistics.get(reclaimable, 0)))
    return max(free, 0)


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def count_pages(
    config: EngineConfig, device: torch.device, *, page_bytes: int, max_seq_len: int, free_before: int
) -> int:
    """Pages of this rank's pool.

    `page_bytes`: of one page in all layers. `free_before`: `free_bytes` before the weights were loaded, of which
    model and pool together take `memory_ratio`. No more than the longest requests could use, nor, on a CPU, than
    `AUTOMATIC_CPU_BYTES` for all ranks. Raises `UserError` when `num_pages` does not fit, or nothing does.
    """
    free = free_bytes(device)
    if config.num_pages is not None:
        if config.num_pages * page_bytes > free:
            raise UserError(
                f"--num-pages {config.num_pages}: so many pages of the KV pool take "
                f"{config.num_pages * page_bytes / 2**30:.2f} GiB; "
                f"{free / 2**30:.2f} GiB are free, which hold {free // page_bytes}"
            )
        return config.num_pages
    room = free - int(free_before * (1 - config.memory_ratio))
    if device.type == "cpu":
        room = min(room // config.tp_size, AUTOMATIC_CPU_BYTES // config.tp_size)
    usable = config.max_running_requests * -(-max_seq_len // config.page_size)
    pages = min(room // page_bytes, usable)
    if pages < 1:
        raise UserError(
            f"--memory-ratio {config.memory_ratio:g}: no memory is left for the KV pool: "
            f"{free / 2**30:.2f} GiB are free after loading the weights, of "
            f"{free_before / 2**30:.2f} GiB before, and the ratio leaves "
            f"{max(room, 0) / 2**20:.1f} MiB; a page takes {page_bytes / 2**20:.1f} MiB"
        )
    return pages
